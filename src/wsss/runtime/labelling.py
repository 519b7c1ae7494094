"""Labelling a folder of images: find them, predict, write, and survive the bad ones.

One process, with one image after the other or several under way; finished images are kept and not
redone.
"""

import csv
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError, ConfigError, DataError, DeadlineError, ShapeError
from .bounded_threads import in_threads
from .files import IMAGE_SUFFIXES, atomic_write_bytes, make_folder, write_error
from .image_io import image_size, read_image, write_label_map
from .image_labels import LabelTable, strip_image_suffix
from .progress import SILENT, Progress

MANIFEST = "labels.json"

Predict = Callable[[NDArray[np.uint8], Sequence[int] | None], NDArray[np.uint8]]
"""(image (H, W, 3) uint8, class indices in it or None) -> (H, W) uint8 label map."""

WINDOW = 8
"""Images that are sorted by size at a time, for each one that may be under way."""


@dataclass(frozen=True)
class InputImage:
    """An image to label.

    Attributes:
        name: relative to the folder that was searched, with extension.
        output: where its label map goes, relative to the output folder.
    """

    path: Path
    name: str
    output: str


@dataclass(frozen=True)
class LabelSummary:
    """What a labelling job did."""

    out: str
    images: int
    labelled: int
    kept: int
    failed: int

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self)


def find_images(sources: Sequence[Path], leave_out: Path | None = None) -> list[InputImage]:
    """Images in files and folders (recursive), in a fixed order, each with its output name.

    Outputs mirror the tree below each folder and end in `.png`; where two inputs would share one,
    the source's extension stays (`a.jpg.png`, `a.webp.png`).

    Args:
        leave_out: a folder that is not searched: the label maps in it are images as well.

    Raises:
        DataError: a source does not exist, a folder cannot be read, nothing was found, or names
        clash all the same.
    """
    found: list[tuple[Path, str]] = []
    for source in sources:
        if source.is_dir():
            files = sorted(_files_below(source, leave_out))
            found += [(p, p.relative_to(source).as_posix()) for p in files]
        elif source.exists():
            found.append((source, source.name))
        else:
            raise DataError(f"no such image or folder: '{source}'")
    if not found:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"no images in {', '.join(map(str, sources))}: looked for {suffixes}")
    stems = [strip_image_suffix(name) for _, name in found]
    uses = Counter(stems)
    images = [
        InputImage(path, name, f"{name}.png" if uses[stem] > 1 else f"{stem}.png")
        for (path, name), stem in zip(found, stems, strict=True)
    ]
    clash, times = Counter(image.output for image in images).most_common(1)[0]
    if times > 1:
        raise DataError(f"{times} inputs would be written to '{clash}': label them apart")
    return images


def _files_below(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read folder '{error.filename}': {error.strerror}") from error

    left_out = os.path.realpath(leave_out) if leave_out is not None else None
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if os.path.realpath(os.path.join(parent, f)) != left_out]
        for file in files:
            # `._a.jpg` is what a Mac leaves beside a.jpg.
            if not file.startswith(".") and Path(file).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(parent, file)


def label_images(
    images: Sequence[InputImage],
    predict: Predict,
    out: Path,
    *,
    provenance: Mapping[str, Any],
    classes: Sequence[str],
    labels: LabelTable | None = None,
    overwrite: bool = False,
    in_flight: int = 1,
    on_stop: Callable[[], object] = lambda: None,
    progress: Progress = SILENT,
) -> LabelSummary:
    """Write one palette PNG an image; images that fail are listed in `failures.csv`.

    Args:
        provenance: what made the labels; stands in `labels.json`. A folder that another model or
            setting wrote is refused.
        labels: image-level labels by name or relative path; every image must be in it.
        overwrite: first remove the label maps of these images, or all that another model or
            setting wrote. A folder with files of other origin is refused all the same.
        in_flight: images under way at once, >= 1. From 2 on `predict` is called by that many
            threads, and images of equal size follow each other where they are close in order, so
            that a server can make batches of them. What is written does not depend on it.
        on_stop: see `in_threads`.

    Raises:
        ArtifactError: the folder holds something else, or cannot be written; ConfigError,
        DataError: the label table does not fit, found before any work.
    """
    bare_names = Counter(image.path.name for image in images)
    given = [
        _given_classes(image, labels, classes, by_bare_name=bare_names[image.path.name] == 1)
        for image in images
    ]
    _claim(out, {**provenance, "classes": list(classes)}, overwrite)
    if overwrite:
        for image in images:
            _remove(out / image.output)

    def label(item: _Item) -> str | None:
        """Why an image failed."""
        try:
            label_map = predict(read_image(item.image.path), item.present)
        except (DataError, ShapeError, DeadlineError) as error:  # others are not about this image
            return str(error)
        write_label_map(out / item.image.output, label_map)
        return None

    items = [_Item(*each) for each in zip(range(len(images)), images, given, strict=True)]
    failures: dict[int, str] = {}
    kept = 0
    with progress.task("label", len(images)) as task:

        def waiting() -> Iterator[_Item]:
            nonlocal kept
            for item in items:
                if not (out / item.image.output).is_file():
                    yield item
                else:
                    kept += 1
                    task.advance(failed=len(failures))

        for item, failure in _labelled(waiting(), label, in_flight, on_stop):
            if failure is not None:
                failures[item.place] = failure
            task.advance(failed=len(failures))
    _write_failures(out, [(str(images[i].path), failures[i]) for i in sorted(failures)])
    done = len(images) - kept - len(failures)
    return LabelSummary(str(out), len(images), done, kept, len(failures))


@dataclass(frozen=True)
class _Item:
    place: int
    image: InputImage
    present: list[int] | None


def _labelled(
    items: Iterator[_Item],
    label: Callable[[_Item], str | None],
    in_flight: int,
    on_stop: Callable[[], object],
) -> Iterator[tuple[_Item, str | None]]:
    if in_flight > 1:
        return in_threads(_by_size(items, WINDOW * in_flight), label, in_flight, on_stop)
    return ((item, label(item)) for item in items)


def _by_size(items: Iterable[_Item], window: int) -> Iterator[_Item]:
    """The items, those of equal image size next to each other within each window."""
    rest = iter(items)
    while some := list(islice(rest, window)):
        yield from sorted(some, key=_size)


def _size(item: _Item) -> tuple[int, int]:
    try:
        return image_size(item.image.path)
    except DataError:  # will be told when its turn comes
        return (0, 0)


def _given_classes(
    image: InputImage, labels: LabelTable | None, classes: Sequence[str], *, by_bare_name: bool
) -> list[int] | None:
    """Class indices of an image; by the file's bare name only where no other input shares it."""
    if labels is None:
        return None
    entry = labels.find(image.name) or (labels.find(image.path.name) if by_bare_name else None)
    if entry is None:
        raise DataError(
            f"the label file does not mention image '{image.name}': add it (an empty entry means "
            "background only), or leave --labels out"
        )
    unknown = [name for name in entry.labels if name not in classes]
    if unknown:
        raise ConfigError(
            f"label '{unknown[0]}' of image '{image.name}' is no class of the model: it knows "
            f"{', '.join(classes)}"
        )
    return [classes.index(name) for name in entry.labels]


def _claim(out: Path, provenance: Mapping[str, Any], overwrite: bool) -> None:
    manifest = out / MANIFEST
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"'{out}' is a file: give --out a folder")
    if out.is_dir() and any(out.iterdir()):
        found = _read_manifest(manifest)
        differing = [key for key in provenance if found.get(key) != provenance[key]]
        if differing and not overwrite:
            raise ArtifactError(
                f"'{out}' holds labels made otherwise (different {', '.join(differing)}): choose "
                "another --out, or --overwrite them"
            )
        if differing:
            for path in out.iterdir():
                if path != manifest:  # which goes last, so that a killed removal can be repeated
                    _remove(path)
    make_folder(out)
    atomic_write_bytes(manifest, json.dumps(provenance, indent=2, sort_keys=True).encode())


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise ArtifactError(
            f"'{path.parent}' is not empty and holds no labels of ours: choose another --out"
        )
    return found


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def _write_failures(out: Path, failures: Sequence[tuple[str, str]]) -> None:
    path = out / "failures.csv"
    if not failures:
        _remove(path)
        return
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("image", "reason"))
    writer.writerows(failures)
    atomic_write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))
