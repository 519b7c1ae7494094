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
    """Recognise the layout of a folder and read what it says; no image is opened.

    Tried in this order: a VOC devkit (the folder itself, `VOC2012` or `VOCdevkit/VOC2012` in it);
    COCO JSON; images with one CSV or JSON of labels; a folder of images per class. `classes.txt`
    (one name a line) fixes the class list and its order, which masks refer to; without it the
    order is that of VOC's masks for a devkit, of the category ids for COCO, else the alphabet.
    A set without lists has a single one, `train`.

    Args:
        classes: takes the place of `classes.txt`.
        strict: raise at the first fault; else faults stand in `findings` of the set.

    Raises:
        DataError: no such folder, no images, no known layout, or the first fault: an image without
            labels (one of background alone needs an empty entry), a label outside the class list
            or of an image that is not there, a name that leaves the folder.
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
