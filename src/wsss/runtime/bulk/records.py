"""The commit record of a unit: what became of each image. Without it nothing of a unit counts.

A record holds nothing that differs between two runs of one job, such as times: the same job gives
the same bytes.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from ...errors import ArtifactError
from .durable import write_durably
from .json_lines import SUFFIX, pack, read_lines

UNITS = "units"
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
        instances: number of them, fragments left out; None where the model told none.
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
    instances: int | None = None

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
    """

    unit: int
    settings: str
    codes: Mapping[str, int]
    pixels: Mapping[int, int]
    images_of: Mapping[int, int]

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
    summary = UnitSummary(unit, settings, dict(codes), dict(pixels), dict(images_of))
    lines = [asdict(summary), *(asdict(image) for image in images)]
    write_durably(_path(out, unit), pack(lines), work)
    return summary


def recorded_units(out: Path) -> set[int]:
    """Units that have a record, by the names alone: ten million images have ten thousand."""
    try:
        names = [entry.name for entry in os.scandir(out / UNITS)]
    except FileNotFoundError:
        return set()
    stems = (name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))
    return {int(stem) for stem in stems if stem.isascii() and stem.isdigit()}


def read_summary(out: Path, unit: int) -> UnitSummary:
    """The first line of a record; the others are not read.

    Raises:
        ArtifactError: absent, or damaged.
    """
    path = _path(out, unit)
    for line in read_lines(path):
        with _damage(path):
            counts = {
                key: {int(value): int(count) for value, count in line[key].items()}
                for key in ("pixels", "images_of")
            }
            codes = {str(code): int(count) for code, count in line["codes"].items()}
            return UnitSummary(int(line["unit"]), str(line["settings"]), codes, **counts)
    raise ArtifactError(f"'{path}' is empty: remove it and run the job again")


def read_images(out: Path, unit: int) -> Iterator[ImageRecord]:
    """What became of the images of a unit, in the order of the list.

    Raises:
        ArtifactError: absent, or damaged.
    """
    path = _path(out, unit)
    for line in islice(read_lines(path), 1, None):
        with _damage(path):
            height, width = line["size"]
            values = {
                **line,
                "size": (int(height), int(width)),
                "pixels": {int(value): int(count) for value, count in line["pixels"].items()},
                "missing": tuple(line["missing"]),
            }
            image = ImageRecord(**values)
        yield image


def _path(out: Path, unit: int) -> Path:
    return out / UNITS / f"{unit_name(unit)}{SUFFIX}"


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"'{path}' is damaged ({error!r}): remove it and run the job again"
        ) from error
