"""PASCAL VOC devkit: JPEGImages, ImageSets, SegmentationClass and SegmentationObject, and one of
three kinds of labels.

Image-level labels are the object names in Annotations, difficult ones included as in the
published work; without annotations those of a `labels.csv`; else the classes of the masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...runtime.instances.files import CLASSES, OBJECTS, read_ids
from ...runtime.io.files import IMAGE_SUFFIXES
from ...runtime.io.palette import IGNORE_INDEX
from .class_list import VOC_CLASSES, class_indices, given_classes, read_lines
from .files import assemble, check_name, mask_file
from .findings import Findings
from .image_set import ImageSet, InstanceTruth, MaskFile, MaskSource, Sample, content_digest
from .voc_labels import (
    find_table,
    labels_of_annotations,
    labels_of_masks,
    labels_of_table,
    voc_order,
)


def find_devkit(root: Path) -> Path | None:
    """The folder with JPEGImages and ImageSets: root, or the newest `VOC20xx` in it, or None."""
    below = [*root.glob("VOC20*"), *root.glob("VOCdevkit/VOC20*")]
    for folder in (root, *sorted(below, key=lambda path: path.name, reverse=True)):
        if (folder / "JPEGImages").is_dir() and (folder / "ImageSets").is_dir():
            return folder
    return None


def read_voc(
    root: Path, devkit: Path, classes: Sequence[str] | None, findings: Findings
) -> ImageSet:
    """The images that the devkit's segmentation lists name, or else those of `ImageSets/Main`."""
    places = _places(root, devkit)
    fixed = given_classes(places, classes)
    images = _images(devkit / "JPEGImages", findings)
    lists = _read_lists(devkit, findings)
    names = list(dict.fromkeys(name for part in lists.values() for name in part))
    for name in names:
        if name not in images:
            holder = next(key for key, part in lists.items() if name in part)
            findings.fault(
                "missing image",
                name,
                f"list '{holder}' names image '{name}', which '{devkit / 'JPEGImages'}' does not "
                "hold: add the image or take it out of the list",
            )
    names = sorted(name for name in names if name in images)
    _note_unlisted(images, names, findings)

    table = find_table(places, fixed or VOC_CLASSES)
    if (devkit / "Annotations").is_dir() and any((devkit / "Annotations").glob("*.xml")):
        how = "labels from Annotations"
        labels = labels_of_annotations(devkit / "Annotations", names, findings)
    elif table is not None:
        how = f"labels from {table.path.name}"
        labels = labels_of_table(table, names, images, findings)
    else:
        how = "labels derived from the masks"
        labels = labels_of_masks(devkit / CLASSES, names, fixed, findings)
    known = fixed or voc_order(n for found in labels.values() for n in found or ())
    membership = {key: frozenset(part) for key, part in lists.items()}
    samples = []
    for name in names:
        found, entry = labels[name], table.find(name) if table else None
        mask = mask_file(devkit / CLASSES, name, len(known))
        samples.append(
            Sample(
                name,
                images[name],
                None if found is None else class_indices(found, known, name, findings),
                tuple(key for key, part in membership.items() if name in part),
                mask,
                entry.source if entry else None,
                _instances(devkit / OBJECTS / f"{name}.png", mask),
            )
        )
    return assemble(root, f"VOC devkit {devkit.name}, {how}", known, samples, findings)


@dataclass(frozen=True)
class VocInstances:
    """Ids of `SegmentationObject`, whose classes are those of the mask under each.

    255 in either file is void; so is what has a class but no id, because nobody says which objects
    it is of. An id that is void everywhere is none.
    """

    path: Path
    mask: MaskSource

    def load(self) -> InstanceTruth:
        """See `InstanceSource.load`."""
        stored, mask = read_ids(self.path), self.mask.load()
        if stored.ids.shape != mask.shape:
            height, width = stored.ids.shape
            raise DataError(
                f"instance ids '{self.path}' are {height} x {width}, the mask of classes is "
                f"{mask.shape[0]} x {mask.shape[1]}: they must have the same size"
            )
        ids = np.where(mask == IGNORE_INDEX, np.uint16(0), stored.ids)
        found, classes = classes_under(ids, mask, str(self.path))
        places = np.zeros(int(found.max(initial=0)) + 1, np.uint16)
        places[found] = np.arange(1, len(found) + 1)
        void = stored.void | ((mask != 0) & (ids == 0))
        return InstanceTruth(places[ids], classes, void)

    def fingerprint(self) -> str:
        """See `InstanceSource.fingerprint`: of the bytes of the file."""
        return content_digest(self.path)


def _instances(path: Path, mask: MaskFile | None) -> VocInstances | None:
    return VocInstances(path, mask) if mask is not None and path.is_file() else None


def _places(root: Path, devkit: Path) -> list[Path]:
    """The devkit and the folders above it, up to what the user gave."""
    places = [devkit]
    while places[-1] != root:
        places.append(places[-1].parent)
    return places


def _images(folder: Path, findings: Findings) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            first = images.setdefault(path.stem, path)
            if first != path:
                findings.fault(
                    "duplicate",
                    path.stem,
                    f"'{first}' and '{path}' are both image '{path.stem}': take one out",
                )
    return images


def _read_lists(devkit: Path, findings: Findings) -> dict[str, dict[str, None]]:
    """Names by list, in the order of the files.

    Main holds a list a class as well (`cat_train.txt`), told apart by their second column.
    """
    for folder in (devkit / "ImageSets" / "Segmentation", devkit / "ImageSets" / "Main"):
        lists = {}
        for path in sorted(folder.glob("*.txt")):
            lines = read_lines(path)
            if folder.name == "Main" and any(len(line.split()) > 1 for line in lines):
                continue
            for line in lines:
                if len(line.split()) > 1 or "/" in line:
                    raise DataError(
                        f"list '{path}' has the line {line!r}, expected one image name a line "
                        "without folder and extension"
                    )
            where = f"list '{path}'"
            lists[path.stem] = dict.fromkeys(n for n in lines if check_name(n, where, findings))
        if lists:
            return lists
    raise DataError(
        f"'{devkit}' has no lists: expected files such as ImageSets/Segmentation/train.txt"
    )


def _note_unlisted(images: dict[str, Path], names: Sequence[str], findings: Findings) -> None:
    unlisted = sorted(set(images) - set(names))
    if unlisted:
        findings.note(
            "image in no list",
            unlisted[0],
            f"{len(unlisted)} of {len(images)} images in JPEGImages are in no list and are not "
            f"used, for example '{unlisted[0]}'",
        )


def classes_under(
    ids: NDArray[np.uint16], mask: NDArray[np.uint8], where: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ids that occur, ascending, and the class index of each.

    Args:
        ids: (H, W), 0 for none.
        mask: (H, W), not 255 under an id.
        where: the file of the ids, for errors.

    Raises:
        DataError: an id lies on several classes, or on the background.
    """
    # With each id the indices under it; counting is several times as fast as sorting.
    pairs = np.flatnonzero(np.bincount((ids.astype(np.int64) * 256 + mask).ravel()))
    found, values = np.divmod(pairs[pairs >= 256], 256)
    twice = found[1:][found[1:] == found[:-1]]
    if len(twice):
        under = ", ".join(map(str, values[found == twice[0]].tolist()))
        raise DataError(
            f"instance {twice[0]} of '{where}' lies on the indices {under} of its mask, expected "
            "one class under each instance"
        )
    if (values == 0).any():
        raise DataError(
            f"instance {found[values == 0][0]} of '{where}' lies on the background of its mask, "
            "expected a class"
        )
    return found, values - 1
