"""The commit record of a unit: what became of each image. Without it nothing of a unit counts.

A record holds nothing that differs between two runs of one job, such as times: the same job gives
the same bytes. Its file, like those of entries, holds objects, one a line, compressed.
"""

import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ....errors import ArtifactError
from ...io.staging import write_durably
from ..image_list.frozen_list import FrozenList

UNITS = "units"
SUFFIX = ".jsonl.gz"
_MAX_LINE = 1 << 26
"""Bytes; a line of a scanned map's polygons is long, that of an attack longer."""
OK = "ok"
"""Code of an image that was labelled."""


@dataclass(frozen=True)
class ImageRecord:
    """What became of an image.

    Attributes:
        index: place in the job's list.
        code: ok, or why not; see `CODES`.
        reason: one line for people; empty if ok.
        sha256: over names and contents of the files that were written.
        size: (height, width) as displayed.
        pixels: label value -> number of pixels.
        confidence: mean over the image.
        change: share of the cells of the walk's grid whose label the walk changed; None if unknown.
        missing: classes that were given for the image and got no pixel.
        instances: label value -> number of them, see `InstanceMap.counts`; None where the model
            tells none.
    """

    index: int
    name: str
    output: str
    code: str
    reason: str = ""
    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    pixels: Mapping[int, int] = field(default_factory=dict)
    confidence: float | None = None
    change: float | None = None
    missing: tuple[int, ...] = ()
    instances: Mapping[int, int] | None = None

    @property
    def is_ok(self) -> bool:
        """Whether it was labelled."""
        return self.code == OK


@dataclass(frozen=True)
class UnitSummary:
    """The first line of a record.

    Attributes:
        settings: digest of the model and settings that made it.
        codes: code -> images; their sum is the number of images.
        pixels: label value -> pixels over all images.
        images_of: label value -> images in which it occurs.
        instances: label value -> instances over all images; None where no image has told any.
    """

    unit: int
    settings: str
    codes: Mapping[str, int]
    pixels: Mapping[int, int]
    images_of: Mapping[int, int]
    instances: Mapping[int, int] | None = None

    @property
    def num_images(self) -> int:
        """All of the unit."""
        return sum(self.codes.values())

    @property
    def num_labelled(self) -> int:
        """Images with a label map."""
        return self.codes.get(OK, 0)

    @property
    def num_failed(self) -> int:
        """Images that were set aside."""
        return self.num_images - self.num_labelled


def unit_name(unit: int) -> str:
    """Of a unit's files."""
    return f"{unit:05d}"


def write_record(
    out: Path, unit: int, settings: str, images: Sequence[ImageRecord], work: Path
) -> UnitSummary:
    """Commit a unit; its files must be on the disk.

    Args:
        settings: see `UnitSummary`.
        images: all of the unit, in the order of the list.
        work: see `write_durably`.

    Raises:
        ArtifactError: the disk does not take it.
    """
    pixels, images_of = Counter[int](), Counter[int]()
    for image in images:
        pixels.update(image.pixels)
        images_of.update(image.pixels.keys())
    codes = Counter(image.code for image in images)
    instances = total_instances(image.instances for image in images)
    summary = UnitSummary(unit, settings, dict(codes), dict(pixels), dict(images_of), instances)
    lines = [asdict(summary), *(asdict(image) for image in images)]
    write_durably(_path(out, unit), pack_lines(lines), work)
    return summary


def total_instances(
    told: Iterable[Mapping[int, int] | None],
) -> dict[int, int] | None:
    """Sum by label value; None where none of them says anything."""
    known = [counts for counts in told if counts is not None]
    total = Counter[int]()
    for counts in known:
        total.update(counts)
    return dict(total) if known else None


def recorded_units(out: Path) -> set[int]:
    """Units that have a record, by the names alone: ten million images have ten thousand."""
    try:
        names = [entry.name for entry in os.scandir(out / UNITS)]
    except FileNotFoundError:
        return set()
    stems = (name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))
    return {int(stem) for stem in stems if stem.isascii() and stem.isdigit()}


def read_summary(
    out: Path, images: FrozenList, unit: int, settings: str | None = None
) -> UnitSummary:
    """The first line of a record; the others are not read.

    Args:
        images: the list of the job.
        settings: digest that the record must have; None: any.

    Raises:
        ArtifactError: absent, damaged, of another list, model or settings.
    """
    path = _path(out, unit)
    for line in read_lines(path):
        with _damage(path):
            counts = {key: _by_value(line[key]) for key in ("pixels", "images_of")}
            instances = _by_value_if_told(line.get("instances"))
            codes = {_text(code): _count(count) for code, count in line["codes"].items()}
            unit_of, made_by = _count(line["unit"]), _text(line["settings"])
            summary = UnitSummary(unit_of, made_by, codes, **counts, instances=instances)
            if (summary.unit, summary.num_images) != (unit, images.parts[unit].count):
                raise ValueError("it is of another unit")
        if settings not in (None, summary.settings):
            raise ArtifactError(
                f"'{path}' was made by another model or other settings: remove it and run the job "
                "again"
            )
        return summary
    raise ArtifactError(f"'{path}' is empty: remove it and run the job again")


def read_images(out: Path, images: FrozenList, unit: int) -> Iterator[ImageRecord]:
    """What became of the images of a unit: of all of them, in the order of the list.

    Args:
        images: the list of the job.

    Raises:
        ArtifactError: absent, damaged, or of another list.
    """
    path = _path(out, unit)
    index, end = images.first(unit), images.first(unit) + images.parts[unit].count
    for line in islice(read_lines(path), 1, None):
        with _damage(path):
            image = _image(line)
            if image.index != index or index == end:
                raise ValueError("it is of other images")
        yield image
        index += 1
    with _damage(path):
        if index != end:
            raise ValueError("it lacks images")


def _image(line: Any) -> ImageRecord:
    """An image of a line; a job's folder may come from a stranger.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: not the fields of an image.
    """
    height, width = line["size"]
    texts = {key: _text(line[key]) for key in ("name", "output", "code", "reason", "sha256")}
    return ImageRecord(
        _count(line["index"]),
        **texts,
        size=(_count(height), _count(width)),
        pixels=_by_value(line["pixels"]),
        confidence=_share(line["confidence"]),
        change=_share(line["change"]),
        missing=tuple(map(_count, line["missing"])),
        instances=_by_value_if_told(line.get("instances")),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is none")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("a count is none")
    return value


def _by_value(counts: Any) -> dict[int, int]:
    return {int(value): _count(count) for value, count in counts.items()}


def _by_value_if_told(counts: Any) -> dict[int, int] | None:
    return None if counts is None else _by_value(counts)


def _share(value: object) -> float | None:
    if value is None or (isinstance(value, int | float) and 0 <= value <= 1):
        return value
    raise TypeError("a share is none")


def _path(out: Path, unit: int) -> Path:
    return out / UNITS / f"{unit_name(unit)}{SUFFIX}"


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ArtifactError(
            f"'{path}' is damaged ({reason}): remove it and run the job again"
        ) from error


def pack_lines(lines: Iterable[Any]) -> bytes:
    """Objects as the content of a file: ASCII, keys sorted, no time stamp."""
    text = "".join(
        json.dumps(line, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n"
        for line in lines
    )
    return gzip.compress(text.encode("ascii"), 6, mtime=0)


def read_lines(path: Path) -> Iterator[Any]:
    """Objects of a file, one after the other; those not asked for are not read.

    Raises:
        ArtifactError: absent, damaged, or no such file.
    """
    try:
        with gzip.open(path, "rb") as file:
            while line := file.readline(_MAX_LINE):
                if not line.endswith(b"\n"):
                    raise ValueError("a line does not end")
                yield json.loads(line)
    except (OSError, EOFError, ValueError, zlib.error, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ArtifactError(
            f"'{path}' is damaged or absent ({reason}): remove it and run the job again"
        ) from error
