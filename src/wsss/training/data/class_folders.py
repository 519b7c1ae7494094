"""A folder per class: `CLASS/any/image.jpg`, optionally below `train/`, `val/` and the like.

An image has the one label of its folder; a folder called `background` holds images without any.
"""

from collections.abc import Sequence
from pathlib import Path

from ...errors import DataError
from .class_list import class_indices, given_classes, ordered_classes
from .files import (
    assemble,
    image_name,
    images_folder,
    is_split_name,
    list_images,
    mask_file,
    note_stray_masks,
    split_name,
)
from .findings import Findings
from .image_set import ImageSet, Sample


def read_class_folders(root: Path, classes: Sequence[str] | None, findings: Findings) -> ImageSet:
    """The images of all class folders.

    Raises:
        DataError: no folder holds an image, or images lie where no class can be read off.
    """
    others = [path for path in root.iterdir() if path.is_dir() and path.name[0] != "."]
    only_images = all(path.name in ("images", "masks") for path in others)
    folder = images_folder(root) if only_images else root  # `images` may be a class among others
    images = list_images(folder, skip=("masks",) if folder == root else ())
    parts = {relative: relative.split("/")[:-1] for relative in images}
    with_split = _has_split_level(folder, [part for part in parts.values() if part])
    depth = 1 if with_split else 0
    placed = {relative: part for relative, part in parts.items() if len(part) > depth}
    if not placed:
        found = f"{len(images)} images but no label file" if images else "no images"
        raise DataError(
            f"'{root}' has {found}: expected a VOC devkit, COCO JSON, images with labels.csv or "
            "labels.json, or a folder of images per class"
        )
    for relative in images:
        if relative not in placed:
            findings.fault(
                "unplaced image",
                relative,
                f"image '{relative}' of '{folder}' lies beside the class folders: move it into "
                "one, or into 'background'",
            )
    names = [part[depth] for part in placed.values()]
    known = given_classes(dict.fromkeys((root, folder)), classes) or ordered_classes(names)
    samples = []
    for relative, part in placed.items():
        name = image_name(relative)
        labels = class_indices((part[depth],), known, name, findings)
        splits = (split_name(part[0]),) if with_split else ()
        mask = mask_file(root / "masks", name, len(known))
        samples.append(Sample(name, images[relative], labels, splits, mask))
    note_stray_masks(root / "masks", [sample.name for sample in samples], findings)
    return assemble(root, "a folder per class", known, samples, findings)


def _has_split_level(folder: Path, parts: Sequence[Sequence[str]]) -> bool:
    """Whether the first folders are lists; `train` beside `bus` is a class like any other."""
    top = sorted({part[0] for part in parts})
    if not top or not all(is_split_name(name) for name in top):
        return False
    if all(len(part) == 1 for part in parts):
        raise DataError(
            f"the folders {', '.join(top)} of '{folder}' hold images but no class folders, and "
            "there is no label file: add labels.csv, or a folder per class in each"
        )
    return True
