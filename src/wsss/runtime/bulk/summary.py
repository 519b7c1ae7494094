"""What a job came to, made from its records: summary, failures, files that formats collect."""

import csv
import io
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...version import __version__
from ..io.files import write_error
from ..io.palette import IGNORE_INDEX
from ..io.progress import Progress
from ..io.staging import WORK, write_durably
from .formats.contract import JobView, Writer
from .image_list.frozen_list import FrozenList
from .timings import add_timings
from .work.records import OK, read_images, read_lines, read_summary, recorded_units, total_instances
from .work.unit import entries_path

SUMMARY, FAILURES = "summary.json", "failures.csv"


@dataclass(frozen=True)
class JobCounts:
    """What all records of a job say together.

    Attributes:
        units, units_done: all, and those with a record.
        images: in all units.
        codes: code -> images, over the units that are done.
        pixels: label value -> pixels.
        images_of: label value -> images in which it occurs.
        instances: label value -> instances; None where the model tells none.
    """

    units: int
    units_done: int
    images: int
    codes: Mapping[str, int]
    pixels: Mapping[int, int]
    images_of: Mapping[int, int]
    instances: Mapping[int, int] | None = None

    @property
    def labelled(self) -> int:
        """Images with a label map."""
        return self.codes.get(OK, 0)

    @property
    def failed(self) -> int:
        """Images that were set aside."""
        return sum(self.codes.values()) - self.labelled

    @property
    def is_complete(self) -> bool:
        """Whether every unit has its record."""
        return self.units_done == self.units


def count_records(
    out: Path,
    images: FrozenList,
    units: Collection[int] | None = None,
    settings: str | None = None,
) -> JobCounts:
    """Add up the first lines of the records.

    Args:
        units: of which; None: of all.
        settings: digest that all of them must have; None: any.

    Raises:
        ArtifactError: one is damaged, or of another list, model or settings.
    """
    codes, pixels, images_of = Counter[str](), Counter[int](), Counter[int]()
    instances: list[Mapping[int, int] | None] = []
    units = range(images.num_units) if units is None else units
    done = sorted(recorded_units(out).intersection(units))
    for unit in done:
        summary = read_summary(out, images, unit, settings)
        codes.update(summary.codes)
        pixels.update(summary.pixels)
        images_of.update(summary.images_of)
        instances.append(summary.instances)
    num_images = sum(images.parts[unit].count for unit in units)
    total = total_instances(instances)
    return JobCounts(len(units), len(done), num_images, codes, pixels, images_of, total)


def has_results(out: Path) -> bool:
    """Whether the results of a job were made since a unit was labelled: `summary.json` is the last
    of them."""
    return (out / SUMMARY).is_file()


def forget_results(out: Path) -> None:
    """Before units are labelled: what `summary.json` says is over.

    Raises:
        ArtifactError: it cannot be removed.
    """
    try:
        (out / SUMMARY).unlink(missing_ok=True)
    except OSError as error:
        raise write_error(out / SUMMARY, error) from error


def write_results(
    out: Path,
    images: FrozenList,
    counts: JobCounts,
    writers: Mapping[str, Writer],
    progress: Progress,
) -> None:
    """`failures.csv`, and the files that formats collect, of the units that are done.

    Args:
        counts: of all units.

    Raises:
        ArtifactError: a record is damaged, or the disk does not take the files.
    """
    units = sorted(recorded_units(out).intersection(range(images.num_units)))
    if counts.failed:
        write_durably(out / FAILURES, _failure_lines(out, images, units), out / WORK)
    else:
        (out / FAILURES).unlink(missing_ok=True)
    for name, writer in writers.items():
        for path, pieces in writer.collect(_Entries(out, images, name, units, progress)):
            write_durably(out / path, pieces, out / WORK)


def write_summary(out: Path, counts: JobCounts, job: JobView) -> None:
    """`summary.json`: the counts, what each class got, and where the time went.

    `instances`, of the job and of each class, where the model tells them.
    """
    names = {0: "background", IGNORE_INDEX: "no statement"}
    names |= {place + 1: name for place, name in enumerate(job.classes)}
    total = sum(counts.pixels.values()) or 1
    instances = counts.instances or {}
    classes: dict[str, dict[str, float]] = {}
    # An instance's class may have no pixel of its own in the label maps.
    for value in sorted({*counts.pixels, *instances}):
        figures = {
            "images": counts.images_of.get(value, 0),
            "share_of_pixels": counts.pixels.get(value, 0) / total,
        }
        if counts.instances is not None and value not in (0, IGNORE_INDEX):
            figures["instances"] = instances.get(value, 0)
        classes[names.get(value, str(value))] = figures
    content = {
        "wsss": __version__,
        "settings": job.provenance,
        "units": counts.units,
        "units_done": counts.units_done,
        "images": counts.images,
        "labelled": counts.labelled,
        "failed": counts.failed,
        "codes": dict(counts.codes),
        "classes": classes,
        "time": add_timings(out),
    }
    if counts.instances is not None:
        content["instances"] = sum(instances.values())
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
    write_durably(out / SUMMARY, (text + "\n").encode("ascii"), out / WORK)


@dataclass(frozen=True)
class _Entries:
    """What writers said of the images, unit by unit; may be gone through more than once.

    Only a record counts: of a unit that was killed while it tried failed images again, entries may
    say more.
    """

    out: Path
    images: FrozenList
    format_name: str
    units: Sequence[int]
    progress: Progress

    def __iter__(self) -> Iterator[Any]:
        with self.progress.task(f"collect {self.format_name}", len(self.units)) as task:
            for unit in self.units:
                path = self.out / entries_path(self.format_name, unit)
                if path.is_file():  # a unit may have none
                    failed = self._failed(unit)
                    for index, entry in read_lines(path):
                        if entry is not None and index not in failed:
                            yield entry
                task.advance()

    def _failed(self, unit: int) -> frozenset[int]:
        if not read_summary(self.out, self.images, unit).num_failed:
            return frozenset()
        records = read_images(self.out, self.images, unit)
        return frozenset(record.index for record in records if not record.is_ok)


def _failure_lines(out: Path, images: FrozenList, units: Iterable[int]) -> Iterator[bytes]:
    yield _csv_line("image", "code", "reason")
    for unit in units:
        summary = read_summary(out, images, unit)
        if set(summary.codes) <= {OK}:
            continue
        sources = [ref.source for ref in images.unit(unit)]
        for source, record in zip(sources, read_images(out, images, unit), strict=True):
            if not record.is_ok:
                yield _csv_line(source, record.code, record.reason)


def _csv_line(*cells: str) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode("utf-8", "backslashreplace")
