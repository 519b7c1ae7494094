"""Image-level labels of a VOC devkit: from annotations, from a label file, or from the masks."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ...errors import DataError
from ...runtime.io.files import read_file
from ...runtime.io.image_io import read_label_map
from ...runtime.io.image_labels import LabelTable, object_names, read_label_table
from ...runtime.io.palette import IGNORE_INDEX
from .class_list import VOC_CLASSES, ordered_classes
from .files import check_name, image_name
from .findings import Findings

MAX_ANNOTATION_BYTES = 4 << 20
"""Annotations of VOC are a few kilobytes long."""

Labels = dict[str, tuple[str, ...] | None]
"""Class names of each image; None where they are not known."""


def find_table(places: Sequence[Path], classes: Sequence[str]) -> LabelTable | None:
    """The first `labels.csv` or `labels.json` of the folders."""
    for folder in places:
        for name in ("labels.csv", "labels.json"):
            if (folder / name).is_file():
                return read_label_table(folder / name, classes=classes)
    return None


def labels_of_annotations(folder: Path, names: Sequence[str], findings: Findings) -> Labels:
    """Object names of `NAME.xml`, difficult objects included."""
    labels: Labels = {}
    for name in names:
        path = folder / f"{name}.xml"
        labels[name] = None
        if not path.is_file():
            findings.fault(
                "unlabelled image",
                name,
                f"image '{name}' has no annotation '{path}': add one (without objects it means "
                "background only)",
            )
            continue
        try:
            labels[name] = read_annotation(path)
        except DataError as error:
            findings.fault("unreadable labels", name, str(error))
    return labels


def read_annotation(path: Path) -> tuple[str, ...]:
    """Names of the objects in a VOC annotation, each as often as it occurs.

    Raises:
        DataError: not such a file; one with a document type or entities is refused, since those
            can fetch files or grow without bound.
    """
    try:
        text = read_file(path, max_bytes=MAX_ANNOTATION_BYTES).decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise DataError(f"annotation '{path}' has a document type or entities: take them out")
        root = ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise DataError(f"annotation '{path}' is not UTF-8 XML: {error}") from None
    names = [(found.findtext("name") or "").strip() for found in root.findall("object")]
    if root.tag != "annotation" or not all(names):
        raise DataError(
            f"annotation '{path}' is not one of VOC: expected <annotation> with <object>s that "
            "have a <name>"
        )
    return tuple(names)


def labels_of_table(
    table: LabelTable, names: Sequence[str], images: dict[str, Path], findings: Findings
) -> Labels:
    """Labels of a table; entries for images that no list uses are legal, for no image not."""
    labels: Labels = {}
    used = set()
    for name in names:
        key = table.find_key(name)
        labels[name] = None if key is None else table.entries[key].labels
        used.add(key)
        if key is None:
            findings.fault(
                "unlabelled image",
                name,
                f"label file '{table.path}' does not mention image '{name}': add it with an empty "
                "entry if it shows background only",
            )
    for key in table.entries:
        where = f"label file '{table.path}'"
        if key not in used and check_name(key, where, findings) and image_name(key) not in images:
            findings.fault(
                "label without image",
                key,
                f"label file '{table.path}' mentions image '{key}', which JPEGImages does not "
                "hold: add the image or take the entry out",
            )
    return labels


def labels_of_masks(
    folder: Path, names: Sequence[str], classes: Sequence[str] | None, findings: Findings
) -> Labels:
    """Classes that the masks hold; every mask is read."""
    known = classes or VOC_CLASSES
    labels: Labels = {}
    for name in names:
        path = folder / f"{name}.png"
        labels[name] = None
        if not path.is_file():
            continue
        try:
            indices = [int(value) for value in np.unique(read_label_map(path))]
        except DataError as error:
            findings.fault("bad mask", name, str(error))
            continue
        objects = [index for index in indices if index not in (0, IGNORE_INDEX)]
        beyond = [index for index in objects if index > len(known)]
        if beyond:
            findings.fault(
                "bad mask",
                name,
                f"mask '{path}' holds index {beyond[0]}, expected 0..{len(known)} or 255: list the "
                "classes in classes.txt",
            )
        labels[name] = tuple(known[index - 1] for index in objects if index <= len(known))
    return labels


def voc_order(found: Iterable[str]) -> tuple[str, ...]:
    """All of VOC's classes, to which the masks' indices refer, unless there are other names."""
    names = set(object_names(found))
    return VOC_CLASSES if names <= set(VOC_CLASSES) else ordered_classes(names)
