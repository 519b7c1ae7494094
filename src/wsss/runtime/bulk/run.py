"""A labelling job from its sources to its results; what `wsss label` calls."""

import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...errors import ConfigError, WsssError
from ..io.files import append_bytes, file_digest
from ..io.image_io import PIXEL_LIMIT, PIXEL_LIMIT_VARIABLE
from ..io.image_labels import read_label_table
from ..io.palette import voc_palette
from ..io.progress import SILENT, Progress, ProgressTask
from ..predictor import PredictorSpec
from ..system import free_cores, machine_memory, memory_limit
from .formats.contract import JobView
from .formats.registry import open_writers
from .image_list.frozen_list import FrozenList, open_list
from .inputs.folder_scan import LeftOut
from .inputs.sources import Sources
from .job import JOB, job_view, open_job, read_job, require_place
from .plan import INPUTS, TAR, Plan, Settings, settings_digest
from .report.page import write_job_report
from .summary import (
    JobCounts,
    count_records,
    forget_results,
    has_results,
    write_results,
    write_summary,
)
from .timings import TIMINGS, time_shares, timing_line
from .work.lock import one_shard, whole_job
from .work.pool import Watcher, label_here, label_in_processes
from .work.records import read_summary, recorded_units
from .work.unit import Task, UnitOutcome

_WORKER_BYTES = 3 << 29
"""Memory that a worker of a MobileNetV2 bundle takes on photographs, rounded up."""

EngineName = Literal["local", "ray"]
_HUGE_BYTES_A_PIXEL = 10
"""Of the one huge image that a worker has: picture, label, confidence, and what writers copy."""
_INSTANCE_BYTES_A_PIXEL = 75
"""Beside these, to group its instances; 68 to 73 were measured of 6 megapixels, 3 to 20 classes."""


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
            raise ConfigError(f"`shard` is '{text}', expected i/n with i from 0 to n - 1")
        return cls(int(found[1]), int(found[2]))

    def units(self, num_units: int) -> range:
        """Of this part."""
        return range(self.index, num_units, self.count)


@dataclass(frozen=True)
class LabelSummary:
    """What a call did, and how far the job is.

    Attributes:
        out: folder of the job.
        images: number of images in the job, or in the shard.
        labelled: images that this call labelled.
        kept: images that were labelled before.
        failed: images without a label map after this call, listed in `failures.csv`.
        remaining: images that were not tried yet.
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
    model: PredictorSpec,
    out: Path,
    *,
    settings: Settings | None = None,
    labels_path: Path | None = None,
    workers: int | None = None,
    engine: EngineName = "local",
    ray_address: str | None = None,
    shard: Shard | None = None,
    overwrite: bool = False,
    append: bool = False,
    follow_links: bool = False,
    retry_failed: bool = False,
    progress: Progress = SILENT,
) -> LabelSummary:
    """Label images, and write the results when all of them are through.

    The same call goes on with a job that was interrupted.

    Args:
        sources: see `wsss.runtime.bulk.inputs.sources.find`.
        labels_path: CSV or JSON of image-level labels of every image.
        workers: processes; 0: label in this one; None: as many as cores and memory allow.
        engine: local: processes of this machine; ray: actors of a cluster, see `ray_engine`.
        ray_address: of a running cluster; None: one on this machine.
        shard: label only this part; `finish_job` makes the results when all parts are there.
        overwrite: first remove what another model or other settings wrote.
        append: look for new images in the sources of a job that began before.
        follow_links: see `find`.
        retry_failed: try again what failed before, as the files are now.

    Raises:
        ConfigError, DataError, ArtifactError: see `open_job`; or the model does not give what a
        format needs.
        ServerError: the server was away or overloaded for too long; what was finished is kept.
    """
    if shard is not None and (overwrite or append):
        raise ConfigError("`shard` is a part of a job: leave `overwrite` and `append` out")
    settings = settings or Settings()
    require_provided(model, settings)
    _require_engine(settings, model, workers, engine, ray_address)
    table = read_label_table(labels_path, classes=model.classes) if labels_path else None
    digest = file_digest(labels_path) if labels_path else None
    plan = Plan(out, model, settings, image_labels=digest)
    searched = Sources(tuple(map(str, sources)), follow_links)
    lock = whole_job(out) if shard is None else one_shard(out, shard.index, shard.count)
    with _only_if_used(out), lock:
        left_out = LeftOut()
        plan, images = open_job(
            plan, searched, table, overwrite=overwrite, append=append, skip=left_out
        )
        if str(left_out):
            progress.note(str(left_out))
        units = shard.units(images.num_units) if shard else range(images.num_units)
        before = count_records(out, images, units, plan.digest())
        tasks = _tasks(out, images, units, retry_failed)
        if tasks:
            forget_results(out)
        to_do = sum(images.parts[task.unit].count for task in tasks)
        with progress.task("label", before.images, before.images - to_do) as task:
            watcher = _Watcher(task, progress, 0 if retry_failed else before.failed)
            for outcome in _outcomes(plan, tasks, workers, watcher, engine, ray_address):
                summary = outcome.summary
                line = timing_line(summary.unit, summary.num_images, outcome.seconds)
                append_bytes(out / TIMINGS, line)
                watcher.through(outcome)
        counts = count_records(out, images, units) if tasks else before
        if shard is None and not has_results(out):
            view = JobView(model.classes, voc_palette(), plan.identity())
            _write_results(out, images, counts, view, progress)
    return LabelSummary(
        str(out),
        counts.images,
        counts.labelled - before.labelled,
        before.labelled,
        counts.failed,
        counts.images - counts.labelled - counts.failed,
    )


def finish_job(out: Path, progress: Progress = SILENT) -> JobCounts:
    """Make the results of a job from its records, whoever wrote them.

    Raises:
        ArtifactError: no job, or a damaged one; ConfigError: units are missing, or a format's
        package is.
    """
    read_job(out)  # no lock in a folder that is none of ours
    with whole_job(out):
        job = read_job(out)
        images = open_list(out / INPUTS, job["list"])
        view = job_view(out, job["settings"])
        counts = count_records(out, images, settings=settings_digest(job["settings"]))
        if not counts.is_complete:
            missing = sorted(set(range(counts.units)) - recorded_units(out))
            shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
            raise ConfigError(
                f"'{out}' lacks {len(missing)} of {counts.units} units ({shown}): run the shards "
                "that hold them again"
            )
        _write_results(out, images, counts, view, progress)
        return counts


def _write_results(
    out: Path, images: FrozenList, counts: JobCounts, view: JobView, progress: Progress
) -> None:
    names = [name for name in view.provenance["formats"] if name != TAR]
    writers = dict(zip(names, open_writers(names, view), strict=True))
    write_results(out, images, counts, writers, progress)
    write_job_report(out, progress)
    write_summary(out, counts, view)  # last: it says that the others are there


def require_provided(model: PredictorSpec, settings: Settings) -> None:
    """Refuse formats that do not exist, or need what the model does not tell."""
    writers = open_writers(settings.writers, JobView(model.classes, voc_palette(), {}))
    options = [f"`formats` {name}" for name in settings.writers]
    needs = {option: each.needs for option, each in zip(options, writers, strict=True)}
    if settings.min_confidence is not None:
        needs["`min_confidence`"] = frozenset({"confidence"})
    for option, wanted in needs.items():
        missing = sorted(wanted - model.provides)
        if "instances" in missing:
            raise ConfigError(
                f"{option} needs instances, which this model does not tell: label by a model of a "
                "method that does"
            )
        if missing:
            raise ConfigError(
                f"{option} needs the {' and '.join(missing)} of each pixel, which runs and the "
                "dense CRF do not give: label by a bundle of `wsss export`, without `crf`"
            )


def _tasks(out: Path, images: FrozenList, units: Iterable[int], retry_failed: bool) -> list[Task]:
    """Units without a record; and those with failures in it, if they are to be tried again."""
    done = recorded_units(out)
    tasks = [Task(unit) for unit in units if unit not in done]
    if retry_failed:
        tried = sorted(done.intersection(units))
        summaries = (read_summary(out, images, unit) for unit in tried)
        tasks += [Task(each.unit, retry=True) for each in summaries if each.num_failed]
    return tasks


def _require_engine(
    settings: Settings,
    model: PredictorSpec,
    workers: int | None,
    engine: EngineName,
    ray_address: str | None,
) -> None:
    """Refuse workers that there cannot be, and huge images in a process not started for them."""
    least = 1 if engine == "ray" else 0
    if workers is not None and workers < least:
        raise ConfigError(f"`workers` is {workers}, expected {least} or more")
    if engine == "ray":
        return
    if ray_address is not None:
        raise ConfigError("`ray_address` is of a Ray cluster: give `engine` ray as well")
    workers = model.workers if workers is None else workers
    if workers == 0 and settings.takes_huge and settings.max_pixels > PIXEL_LIMIT:
        raise ConfigError(
            f"`max_pixels` is {settings.max_pixels}, and this process decodes up to {PIXEL_LIMIT} "
            f"pixels: give `workers` 1, or set {PIXEL_LIMIT_VARIABLE}={settings.max_pixels} in its "
            "environment"
        )


def _outcomes(
    plan: Plan,
    tasks: Sequence[Task],
    workers: int | None,
    watcher: Watcher,
    engine: EngineName,
    ray_address: str | None,
) -> Iterator[UnitOutcome]:
    """Of the units, by the engine that was asked for."""
    if engine == "ray" and tasks:
        from .work.ray_engine import label_in_ray

        # An actor asks for one core.
        one = replace(plan, threads=1)
        return label_in_ray(one, tasks, workers, watcher, address=ray_address)
    num_workers = _num_workers(workers, plan, len(tasks))
    if not num_workers:
        return label_here(plan, tasks, watcher)
    plan = replace(plan, threads=max(1, free_cores() // num_workers))
    return label_in_processes(plan, tasks, num_workers, watcher)


def _num_workers(asked: int | None, plan: Plan, num_units: int) -> int:
    asked = plan.model.workers if asked is None else asked
    if asked is not None:
        return min(asked, num_units)
    settings = plan.settings
    each = _HUGE_BYTES_A_PIXEL
    if "instances" in plan.model.provides:
        each += _INSTANCE_BYTES_A_PIXEL
    huge = each * settings.max_pixels if settings.takes_huge else 0
    return min(num_units, free_cores(), max(1, _free_bytes() // (_WORKER_BYTES + huge)))


def _free_bytes() -> int:
    """That the machine has and a container may have; without a limit more than any job needs."""
    known = (machine_memory("MemAvailable"), memory_limit())
    return min((limit for limit in known if limit is not None), default=1 << 62)


@contextmanager
def _only_if_used(out: Path) -> Iterator[None]:
    """A folder that was not there before, and did not become a job's, is not there afterwards."""
    was_there = out.exists()
    require_place(out)  # before there are locks in it
    try:
        yield
    except BaseException:
        if not was_there:
            with suppress(WsssError), whole_job(out):  # others may have begun here meanwhile
                if not (out / JOB).is_file():
                    shutil.rmtree(out, ignore_errors=True)
        raise


class _Watcher:
    """Turns what the pool tells into progress."""

    def __init__(self, task: ProgressTask, progress: Progress, failed: int) -> None:
        self._task, self._progress, self._failed = task, progress, failed
        self._through = self._shown = 0
        self._started = time.monotonic()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def through(self, outcome: UnitOutcome) -> None:
        """A unit was committed."""
        self._through += outcome.summary.num_images
        self._failed += outcome.summary.num_failed
        for name, seconds in outcome.seconds.items():
            self._seconds[name] += seconds
        self._task.divide(time_shares(self._seconds))
        self._show(self._through)

    def under_way(self, ended: int) -> None:
        """See `Watcher`."""
        if self._through + ended > self._shown:
            self._show(self._through + ended)

    def stopping(self, seconds: float) -> None:
        """See `Watcher`."""
        self._progress.note(
            f"finishing units under way, for at most {seconds:.0f} s; once more ends at once"
        )

    def _show(self, images: int) -> None:
        rate = images / (time.monotonic() - self._started)
        figures = {"failed": self._failed, "images/s": rate}
        # A unit that a dead worker had begun counts from the start again.
        more = max(0, images - self._shown)
        self._task.advance(more, **figures)
        self._shown += more
