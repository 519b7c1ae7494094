"""A labelling job from its sources to its results; what `wsss label` calls."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..files import append_bytes, file_digest
from ..image_labels import read_label_table
from ..palette import voc_palette
from ..progress import SILENT, Progress, ProgressTask
from .frozen_list import FrozenList, open_list
from .job import JOB, claim, read_job, require_place
from .lock import one_shard, whole_job
from .model import Model
from .plan import INPUTS, TAR, Plan, Settings
from .pool import label_here, label_in_processes
from .records import read_summary, recorded_units
from .summary import (
    JobCounts,
    count_records,
    forget_results,
    has_results,
    write_results,
    write_summary,
)
from .timings import TIMINGS, timing_line
from .unit import Task, UnitOutcome
from .writers import open_writers
from .writers.contract import JobView

_WORKER_BYTES = 3 << 29
"""Memory that a worker of a MobileNetV2 bundle takes on photographs, rounded up."""


@dataclass(frozen=True)
class Shard:
    """A part of a job: the units whose number divided by `count` leaves `index`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Of `i/n`, i from 0.

        Raises:
            ConfigError: something else.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None or not int(found[1]) < int(found[2]):
            raise ConfigError(f"--shard is '{text}', expected i/n with i from 0 to n - 1")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"

    def units(self, num_units: int) -> range:
        """Of this part."""
        return range(self.index, num_units, self.count)


@dataclass(frozen=True)
class LabelSummary:
    """What a call did, and how far the job is.

    Attributes:
        images: of the whole job, or of the shard.
        labelled: by this call.
        kept: were labelled before.
        failed: without a label map after this call.
        remaining: not tried yet.
    """

    out: str
    images: int
    labelled: int
    kept: int
    failed: int
    remaining: int

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self)


def label_in_bulk(
    sources: Sequence[str | Path],
    model: Model,
    out: Path,
    *,
    settings: Settings | None = None,
    labels_path: Path | None = None,
    workers: int | None = None,
    shard: Shard | None = None,
    overwrite: bool = False,
    append: bool = False,
    retry_failed: bool = False,
    progress: Progress = SILENT,
) -> LabelSummary:
    """Label images, and write the results when all of them are through.

    The same call goes on with a job that was interrupted.

    Args:
        sources: see `wsss.runtime.bulk.sources.find`.
        labels_path: CSV or JSON of image-level labels of every image.
        workers: processes; 0: label in this one; None: as many as cores and memory allow.
        shard: label only this part; `finish` makes the results when all parts are there.
        overwrite: first remove what another model or other settings wrote.
        append: look for new images in the sources of a job that began before.
        retry_failed: try again what failed before, as the files are now.

    Raises:
        ConfigError, DataError, ArtifactError: see `claim`; or the model does not give what a
        format needs.
        ServerError: the server was away or overloaded for too long; what was finished is kept.
    """
    if shard is not None and (overwrite or append):
        raise ConfigError("--shard is a part of a job: neither --overwrite nor --append fits")
    if workers is not None and workers < 0:
        raise ConfigError(f"--workers is {workers}, expected 0 or more")
    settings = settings or Settings()
    require_offers(model, settings)
    table = read_label_table(labels_path, classes=model.classes) if labels_path else None
    digest = file_digest(labels_path) if labels_path else None
    plan = Plan(out, model, settings, image_labels=digest)
    names = [str(source) for source in sources]
    lock = whole_job(out) if shard is None else one_shard(out, str(shard))
    with _only_if_used(out), lock:
        plan, images = claim(plan, names, table, overwrite=overwrite, append=append)
        units = shard.units(images.num_units) if shard else range(images.num_units)
        before = count_records(out, images, units)
        tasks = _tasks(out, units, retry_failed)
        num_workers = _num_workers(workers, model, len(tasks))
        plan = replace(plan, threads=max(1, num_cores() // num_workers) if num_workers else None)
        if tasks:
            forget_results(out)
        done = before.labelled + (0 if retry_failed else before.failed)
        with progress.task("label", before.images, done) as task:
            watcher = _Watcher(task, progress, before.failed)
            outcomes = (
                label_in_processes(plan, tasks, num_workers, watcher)
                if num_workers
                else label_here(plan, tasks)
            )
            for outcome in outcomes:
                append_bytes(out / TIMINGS, timing_line(outcome))
                watcher.through(outcome)
        counts = count_records(out, images, units) if tasks else before
        if shard is None and not has_results(out):
            _write_results(out, images, counts, plan.identity())
    return LabelSummary(
        str(out),
        counts.images,
        counts.labelled - before.labelled,
        before.labelled,
        counts.failed,
        counts.images - counts.labelled - counts.failed,
    )


def finish(out: Path) -> JobCounts:
    """Make the results of a job from its records, whoever wrote them.

    Raises:
        ArtifactError: no job, or a damaged one; ConfigError: units are missing, or a format's
        package is.
    """
    read_job(out)  # no lock in a folder that is none of ours
    with whole_job(out):
        job = read_job(out)
        images = open_list(out / INPUTS, job["list"])
        counts = count_records(out, images)
        if not counts.is_complete:
            missing = sorted(set(range(counts.units)) - recorded_units(out))
            shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
            raise ConfigError(
                f"'{out}' lacks {len(missing)} of {counts.units} units ({shown}): run the shards "
                "that hold them again"
            )
        _write_results(out, images, counts, job["settings"])
        return counts


def _write_results(
    out: Path, images: FrozenList, counts: JobCounts, settings: Mapping[str, Any]
) -> None:
    view = JobView(tuple(settings["classes"]), voc_palette(), dict(settings))
    names = [name for name in settings["formats"] if name != TAR]
    writers = dict(zip(names, open_writers(names, view), strict=True))
    write_results(out, images, counts, writers)
    write_summary(out, counts, view)


def require_offers(model: Model, settings: Settings) -> None:
    """Refuse formats that do not exist, or need what the model does not tell."""
    writers = open_writers(settings.writers, JobView(model.classes, voc_palette(), {}))
    options = [f"--format {name}" for name in settings.writers]
    needs = {option: each.needs for option, each in zip(options, writers, strict=True)}
    if settings.min_confidence is not None:
        needs["--min-confidence"] = frozenset({"confidence"})
    for option, wanted in needs.items():
        missing = sorted(wanted - model.offers)
        if missing:
            raise ConfigError(
                f"{option} needs the {' and '.join(missing)} of each pixel, which runs and the "
                "dense CRF do not give: label by a bundle of `wsss export`, without --crf"
            )


def _tasks(out: Path, units: Iterable[int], retry_failed: bool) -> list[Task]:
    """Units without a record; and those with failures in it, if they are to be tried again."""
    done = recorded_units(out)
    tasks = [Task(unit) for unit in units if unit not in done]
    if retry_failed:
        tried = sorted(done.intersection(units))
        tasks += [Task(unit, retry=True) for unit in tried if read_summary(out, unit).num_failed]
    return tasks


def _num_workers(asked: int | None, model: Model, num_units: int) -> int:
    asked = model.workers if asked is None else asked
    if asked is not None:
        return min(asked, num_units)
    return min(num_units, num_cores(), max(1, _free_bytes() // _WORKER_BYTES))


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_bytes() -> int:
    try:
        text = Path("/proc/meminfo").read_text()
        return 1024 * int(re.findall(r"MemAvailable:\s+(\d+)", text)[0])
    except (OSError, IndexError):  # another system: as much as one likes
        return 1 << 62


@contextmanager
def _only_if_used(out: Path) -> Iterator[None]:
    """A folder that was not there before, and did not become a job's, is not there afterwards."""
    was_there = out.exists()
    require_place(out)  # before there are locks in it
    try:
        yield
    except BaseException:
        if not was_there and not (out / JOB).is_file():
            shutil.rmtree(out, ignore_errors=True)
        raise


class _Watcher:
    """Turns what the pool tells into progress."""

    def __init__(self, task: ProgressTask, progress: Progress, failed: int) -> None:
        self._task, self._progress, self._failed = task, progress, failed
        self._through = self._shown = 0

    def through(self, outcome: UnitOutcome) -> None:
        """A unit was committed."""
        self._through += outcome.summary.num_images
        self._failed += outcome.summary.num_failed
        self._show(self._through)

    def under_way(self, ended: int) -> None:
        """See `Watcher`."""
        self._show(self._through + ended)

    def stopping(self, seconds: float) -> None:
        """See `Watcher`."""
        self._progress.note(
            f"finishing units under way, for at most {seconds:.0f} s; once more ends at once"
        )

    def _show(self, images: int) -> None:
        # A unit that a dead worker had begun counts from the start again.
        if images > self._shown:
            self._task.advance(images - self._shown, failed=self._failed)
            self._shown = images
