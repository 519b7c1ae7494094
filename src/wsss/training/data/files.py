"""The files of an image set: found by listing folders, never by joining names out of a file."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from ...errors import DataError
from ...runtime.io.files import IMAGE_SUFFIXES
from ...runtime.io.image_labels import strip_image_suffix
from .findings import Findings
from .image_set import ImageSet, MaskFile, Sample

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "trainval": "trainval",
}


def list_images(folder: Path, skip: Iterable[str] = ()) -> dict[str, Path]:
    """Image files below a folder, by their path relative to it, sorted.

    Args:
        skip: names of folders directly below that hold no images of the set.

    Hidden files and folders do not count: macOS and editors leave theirs.
    """
    skipped = frozenset(skip)
    found: dict[str, Path] = {}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        at_top = Path(parent) == folder
        folders[:] = sorted(
            name
            for name in folders
            if not (name[0] == "." or (at_top and name in skipped) or _leads_up(parent, name))
        )
        for name in sorted(files):
            if name[0] != "." and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                path = Path(parent, name)
                found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot read folder '{error.filename}': {error.strerror}") from error


def _leads_up(parent: str, name: str) -> bool:
    """Whether a link points at a folder that holds it, which would have no end."""
    path = os.path.join(parent, name)
    if not os.path.islink(path):
        return False
    target, here = os.path.realpath(path), os.path.realpath(parent)
    return os.path.commonpath((target, here)) == target


def check_name(name: str, where: str, findings: Findings) -> bool:
    """Whether a name out of a file stays below the folder that it is relative to."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    escapes = posix.is_absolute() or windows.drive or windows.root or ".." in windows.parts
    if not escapes and name and "\0" not in name:
        return True
    findings.fault(
        "refused name",
        name,
        f"{where} names the image {name!r}, expected a path below the images' folder: write it "
        "relative to that folder, without '..'",
    )
    return False


def images_folder(root: Path) -> Path:
    """The folder that image names are relative to: `images` where there is one, else root."""
    return root / "images" if (root / "images").is_dir() else root


def note_stray_masks(folder: Path, names: Iterable[str], findings: Findings) -> None:
    """Tell of masks that belong to no image; a name that differs in case is easily overlooked."""
    if not folder.is_dir():
        return
    masks = {image_name(relative) for relative in list_images(folder)}
    stray = sorted(masks.difference(names))
    if stray:
        findings.note(
            "bad mask",
            stray[0],
            f"{len(stray)} of {len(masks)} masks in '{folder}' belong to no image, for example "
            f"'{stray[0]}'",
        )


def mask_file(folder: Path, name: str, num_classes: int) -> MaskFile | None:
    """The mask `NAME.png` of a folder, or None where there is none."""
    path = folder / f"{name}.png"
    return MaskFile(path, num_classes) if path.is_file() else None


def assemble(
    root: Path,
    layout: str,
    classes: tuple[str, ...],
    samples: Iterable[Sample],
    findings: Findings,
) -> ImageSet:
    """The set of the samples that a reader found; without any lists, all are in `train`.

    Raises:
        DataError: no images at all, or two of the same name.
    """
    unique: dict[str, Sample] = {}
    for sample in samples:
        first = unique.setdefault(sample.name, sample)
        if first is not sample:
            findings.fault(
                "duplicate",
                sample.name,
                f"'{first.image_path}' and '{sample.image_path}' are both image '{sample.name}': "
                "rename one, results are stored by name",
            )
    if not unique:
        raise DataError(f"image set '{root}' ({layout}) has no images")
    all_samples = tuple(unique.values())
    if not any(sample.splits for sample in all_samples):
        layout += ", no lists: all images in train"
        all_samples = tuple(replace(sample, splits=("train",)) for sample in all_samples)
    return ImageSet(root, layout, classes, all_samples, tuple(findings.items))


def split_name(text: str) -> str:
    """Name of a list, with the usual spellings of train, val and test made one."""
    return _SPLIT_NAMES.get(text.strip().lower(), text.strip())


def is_split_name(text: str) -> bool:
    """Whether a folder of this name is a list rather than a class."""
    return text.strip().lower() in _SPLIT_NAMES


def image_name(relative: str) -> str:
    """Name of a sample: the relative path without extension."""
    return strip_image_suffix(relative)
