"""COCO JSON: one file of object annotations per list, masks drawn from their segmentations.

An image has the classes of all its annotations, crowds included. Classes are ordered by id.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...runtime.io.files import read_file
from ...runtime.io.image_labels import object_names
from ...runtime.io.palette import IGNORE_INDEX
from .class_list import check_classes, class_indices, given_classes
from .coco_masks import CocoInstances, CocoMask, Region
from .files import assemble, check_name, image_name, list_images, split_name
from .findings import Findings
from .image_set import ImageSet, Sample

MAX_FILE_BYTES = 2 << 30
"""COCO 2017's largest file has 0.45 GB; reading one takes about seven times its size in memory."""


@dataclass(frozen=True)
class _Document:
    """A checked annotation file; `objects` has the annotations by image id."""

    path: Path
    split: str | None
    part: str
    images: dict[Any, dict[str, Any]]
    objects: dict[Any, list[dict[str, Any]]]
    names: dict[Any, str]
    digest: str

    @property
    def has_masks(self) -> bool:
        """Boxes alone make no masks."""
        return any(item.get("segmentation") for part in self.objects.values() for item in part)


def find_coco_files(root: Path) -> list[Path]:
    """Annotation files of objects: `instances*.json` or `annotations*.json` in root or in
    `annotations/`, or `_annotations.coco.json` in the folders of the images."""
    patterns = ("instances*.json", "annotations*.json", "_annotations.coco.json")
    for folder in (root, root / "annotations"):
        for pattern in patterns:
            if found := sorted(folder.glob(pattern)):
                return found
    return sorted(root.glob("*/_annotations.coco.json"))


def read_coco(
    root: Path, files: Sequence[Path], classes: Sequence[str] | None, findings: Findings
) -> ImageSet:
    """The images of all annotation files; an image may be in several, with different lists."""
    documents = [_read_document(path, findings) for path in files]
    known = given_classes((root,), classes)
    if known is None:
        names = (document.names[key] for document in documents for key in sorted(document.names))
        known = check_classes(object_names(names), f"'{files[0]}'")
    samples: dict[Path, Sample] = {}
    folders = set()
    for document in documents:
        folder = _images_folder(root, document)
        folders.add(folder)
        for sample in _samples(folder, document, known, findings):
            earlier = samples.get(sample.image_path)
            splits = (*earlier.splits, *sample.splits) if earlier else sample.splits
            samples[sample.image_path] = replace(sample, splits=tuple(dict.fromkeys(splits)))
    _report_unmentioned(folders, samples, findings)
    layout = f"COCO JSON ({', '.join(path.name for path in files)})"
    return assemble(root, layout, known, samples.values(), findings)


def _samples(
    folder: Path, document: _Document, classes: tuple[str, ...], findings: Findings
) -> Iterator[Sample]:
    where = f"'{document.path}'"
    has_masks = document.has_masks
    for key, image in document.images.items():
        file_name = image["file_name"]
        if not check_name(file_name, where, findings):
            continue
        path = folder / file_name
        name = image_name(path.relative_to(folder).as_posix())
        if not path.is_file():
            findings.fault(
                "label without image",
                name,
                f"{where} mentions image '{file_name}', which '{folder}' does not hold: add the "
                "image or take its entry out",
            )
            continue
        objects = document.objects.get(key, [])
        found = [document.names[item["category_id"]] for item in objects]
        labels = class_indices(found, classes, name, findings)
        mask = _mask(image, objects, document, classes, findings) if has_masks else None
        splits = (document.split,) if document.split else ()
        instances = None if mask is None else CocoInstances(mask)
        yield Sample(name, path, labels, splits, mask, instances=instances)


def _mask(
    image: dict[str, Any],
    objects: list[dict[str, Any]],
    document: _Document,
    classes: tuple[str, ...],
    findings: Findings,
) -> CocoMask | None:
    height, width = image.get("height"), image.get("width")
    shapes = [item.get("segmentation") for item in objects]
    if type(height) is not int or type(width) is not int or not all(shapes):
        findings.note(
            "bad mask",
            image["file_name"],
            f"image '{image['file_name']}' of '{document.path}' gets no mask: it lacks height and "
            "width, or one of its annotations lacks a segmentation",
        )
        return None
    regions = []
    for item, shape in zip(objects, shapes, strict=True):
        name = document.names[item["category_id"]]
        label = classes.index(name) + 1 if name in classes else 0
        regions.append(Region(IGNORE_INDEX if item.get("iscrowd") else label, shape))
    where = f"image '{image['file_name']}' of '{document.path}'"
    return CocoMask(where, height, width, tuple(regions), document.digest)


def read_numbers(root: Path) -> tuple[dict[Any, str], dict[Any, str]] | None:
    """What the ids of a folder's annotation files mean: names of images, and of classes.

    Returns:
        By image id the name of the sample, by category id that of the class; None: it has no
        annotation files.

    Raises:
        DataError: damaged, or an id means two things in two files.
    """
    names: tuple[dict[Any, str], dict[Any, str]] = ({}, {})
    files = find_coco_files(root)
    for path in files:
        document = _read_document(path, Findings(strict=False))
        images = {key: image_name(item["file_name"]) for key, item in document.images.items()}
        for known, found in zip(names, (images, document.names), strict=True):
            for key, name in found.items():
                if known.setdefault(key, name) != name:
                    raise DataError(
                        f"id {key!r} means '{name}' in '{path}' and '{known[key]}' in another "
                        "annotation file: give predictions with images and categories of their own"
                    )
    return names if files else None


def read_json(path: Path) -> tuple[Any, bytes]:
    """The content of an annotation file, and its bytes.

    Raises:
        DataError: unreadable, or no JSON.
    """
    data = read_file(path, max_bytes=MAX_FILE_BYTES)
    try:
        return json.loads(data), data
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not JSON: {error}: write it anew") from None


def _read_document(path: Path, findings: Findings) -> _Document:
    content, data = read_json(path)
    images = {item["id"]: item for item in items_of(content, "images", ("id", "file_name"), path)}
    names = {
        item["id"]: str(item["name"]).strip()
        for item in items_of(content, "categories", ("id", "name"), path)
    }
    objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for item in items_of(content, "annotations", ("image_id", "category_id"), path):
        if item["category_id"] not in names:
            raise DataError(
                f"'{path}' uses category {item['category_id']!r}, which its categories lack"
            )
        if item["image_id"] in images:
            objects[item["image_id"]].append(item)
        else:
            findings.fault(
                "label without image",
                str(item["image_id"]),
                f"'{path}' annotates image {item['image_id']!r}, which its images lack",
            )
    in_image_folder = path.name == "_annotations.coco.json"
    part = path.parent.name if in_image_folder else re.sub("^[^_]*_?", "", path.stem)
    split = split_name(re.sub(r"[\d_-]+$", "", part)) or None
    digest = hashlib.sha256(data).hexdigest()
    return _Document(path, split, part, images, objects, names, digest)


def items_of(
    content: object, key: str, fields: tuple[str, ...], path: Path
) -> list[dict[str, Any]]:
    """A list of a document: objects that have the fields, with ids that are numbers or text.

    Raises:
        DataError: it is something else.
    """
    items = content.get(key) if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise DataError(
            f"'{path}' has no list '{key}', expected COCO's images, annotations and categories"
        )
    for item in items:
        given = [item.get(field) for field in fields] if isinstance(item, dict) else [None]
        if not all(type(value) in (int, str) for value in given):
            raise DataError(f"'{path}' has an entry in '{key}' without {' and '.join(fields)}")
        if "file_name" in fields and not isinstance(given[1], str):
            raise DataError(f"'{path}' has an image whose file_name is no text: {given[1]!r}")
    return items


def _images_folder(root: Path, document: _Document) -> Path:
    """The folder that holds the first image; where none does, the first that exists."""
    part = document.part
    candidates = [root / "images" / part, root / part, root / "images", document.path.parent, root]
    existing = [folder for folder in candidates if folder.is_dir()]
    for image in document.images.values():
        for folder in existing:
            if ".." not in Path(image["file_name"]).parts and (
                (folder / image["file_name"]).is_file()
            ):
                return folder
    return existing[0]


def _report_unmentioned(
    folders: set[Path], samples: dict[Path, Sample], findings: Findings
) -> None:
    for folder in sorted(folders):
        for relative, path in list_images(folder, skip=("masks",)).items():
            if path not in samples:
                findings.fault(
                    "unlabelled image",
                    image_name(relative),
                    f"no annotation file mentions image '{relative}' of '{folder}': add it to the "
                    "images, without annotations if it shows background only",
                )
