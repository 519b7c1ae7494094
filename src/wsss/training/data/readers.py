"""One function that reads an image set in whichever layout it lies on the disk."""

import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import DataError
from .class_folders import read_class_folders
from .coco import find_coco_files, read_coco
from .findings import Findings
from .image_set import ImageSet
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
