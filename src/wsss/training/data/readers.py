"""`read_image_set` reads an image set in any of its layouts; the simplest, one folder per class
(`CLASS/any/image.jpg`, optionally below `train/`, `val/` and the like), is read here.

An image has the one label of its folder; a folder called `background` holds images without any.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import DataError
from .class_list import class_indices, given_classes, ordered_classes
from .coco import find_coco_files, read_coco
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
from .label_files import find_label_file, read_labelled_folder
from .voc import find_devkit, read_voc


def read_image_set(
    root: str | Path, *, classes: Sequence[str] | None = None, strict: bool = True
) -> ImageSet:
    """Read an image set: images, image-level labels, lists, and masks if there are any.

    The layout is detected, in this order: a VOC devkit (the folder itself, `VOC2012` or
    `VOCdevkit/VOC2012` in it); COCO JSON; images with one CSV or JSON file of labels; one folder of
    images per class. `classes.txt` (one name per line) sets the class list and the order in which
    masks number it. Without that file the order is that of VOC's masks for a devkit, of the
    category ids for COCO, and alphabetical otherwise. A set without lists has a single one,
    `train`. No image is opened.

    Args:
        root: folder of the image set.
        classes: names of the classes, in place of `classes.txt`.
        strict: raise an error at the first fault; if False, faults are collected in `findings` of
            the result.

    Returns:
        ImageSet: the class names, and for each image its path, labels, lists and mask.

    Raises:
        DataError: the folder does not exist, has no images or no known layout; or, if `strict`, an
            image has no labels (one with background only needs an empty entry), or a label is not
            in the class list or belongs to no image.
    """
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"'{root}' {what}, expected the folder of an image set")
    findings = Findings(strict)
    try:
        if (devkit := find_devkit(root)) is not None:
            return read_voc(root, devkit, classes, findings)
        if coco_files := find_coco_files(root):
            return read_coco(root, coco_files, classes, findings)
        if (label_file := find_label_file(root)) is not None:
            return read_labelled_folder(root, label_file, classes, findings)
        return read_class_folders(root, classes, findings)
    except OSError as error:
        raise DataError(f"cannot read '{error.filename or root}': {error.strerror}") from None


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
