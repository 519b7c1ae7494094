"""Labelling one unit: read, network, encode, write, commit.

Every thread takes an image all the way. A gate lets as many into the network as it can serve:
while one image computes, the next is read and the last is written, so that the network is not idle
while there is work, and no more images are in memory than there are threads.
"""

import errno
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import DataError, DeadlineError, ShapeError
from ...io.files import BadImage, write_error
from ...io.palette import IGNORE_INDEX, voc_palette
from ...io.staging import Staging
from ...predictor import Prediction
from ..formats.contract import JobView, Writer
from ..formats.registry import open_writers
from ..image_list.frozen_list import open_list
from ..inputs.images import ImageRef, LabelledImage, read_pixels, read_size
from ..plan import INPUTS, Plan
from ..tiling import TiledPredictor
from ..timings import StageTimer
from .bounded_threads import in_threads
from .in_progress import InProgress
from .outputs import FolderSink, Sink, TarSink
from .records import (
    OK,
    SUFFIX,
    ImageRecord,
    UnitSummary,
    pack_lines,
    read_images,
    read_lines,
    unit_name,
    write_record,
)

ENTRIES = "entries"
_BESIDE_THE_NETWORK = 2
"""Images that are read or written while others compute."""
_SPACE_FACTOR = 2
"""Room that must be left for a unit, in what units take in the mean."""

_OF_AN_IMAGE = (DataError, ShapeError, DeadlineError, MemoryError)
"""What one image may be to blame for; any other error ends the job."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Task:
    """A unit to label.

    Attributes:
        retry: label only the images that failed before, as they are now; the unit has a record.
        alone: places in the unit of images that may have killed a worker: they come first, one at
            a time.
        dead: of those that did so each time, which are not tried again.
    """

    unit: int
    retry: bool = False
    alone: frozenset[int] = frozenset()
    dead: frozenset[int] = frozenset()


@dataclass(frozen=True)
class UnitOutcome:
    """A unit that was committed, and where its time went; see `StageTimer.seconds`."""

    summary: UnitSummary
    seconds: Mapping[str, float]


class UnitLabeller:
    """Labels units of a job; opened once in each worker."""

    def __init__(self, plan: Plan) -> None:
        """
        Raises:
            WsssError: the list or the model cannot be opened.
        """
        self._plan, self._digest = plan, plan.digest()
        self._list = open_list(plan.out / INPUTS, plan.list_digest)
        view = JobView(plan.model.classes, voc_palette(), plan.identity())
        names = plan.settings.writers
        self._writers = dict(zip(names, open_writers(names, view), strict=True))
        opened = plan.model.open(plan.threads)
        self._model = TiledPredictor(opened, plan.model, plan.settings.tile_pixels)
        self._huge = threading.Lock()
        self._space = _Space(plan.out)

    def label(
        self, task: Task, under_way: Callable[[int], object] = lambda ended: None
    ) -> UnitOutcome:
        """Label a unit and commit it.

        Args:
            under_way: told how many of its images are through.

        Raises:
            ArtifactError: the disk does not take the outputs; ServerError and others: see
            `TiledPredictor.predict`. Nothing of the unit counts then.
        """
        out, name, refs = self._plan.out, unit_name(task.unit), self._list.unit(task.unit)
        first = self._list.first(task.unit)
        self._space.require(len(refs))
        timer = StageTimer(self._plan.model.in_flight)
        staging = Staging(out, name)
        try:
            kept: dict[int, _Done] = {}
            if task.retry:
                kept, refs = self._earlier(task.unit, refs)
            sink: Sink = FolderSink(staging)
            if self._plan.settings.as_tar:
                sink = TarSink(staging, name, {first + i: ref.name for i, ref in enumerate(refs)})
            with InProgress.create(out, name, len(refs)) as in_progress:
                work = _Work(
                    self._plan,
                    self._model,
                    self._writers,
                    sink,
                    timer,
                    in_progress,
                    self._huge,
                    first,
                )
                done = work.run(refs, kept, task, under_way)
            with timer.stage("commit"):
                for format_name in self._writers:
                    lines = [(each.record.index, each.entries.get(format_name)) for each in done]
                    if any(entry is not None for _, entry in lines):
                        staging.put(entries_path(format_name, task.unit), pack_lines(lines))
                sink.commit()
                records = [each.record for each in done]
                summary = write_record(out, task.unit, self._digest, records, staging.work)
            self._space.was_taken(staging.num_bytes, len(refs))
        finally:
            staging.close()
        return UnitOutcome(summary, timer.seconds())

    def _earlier(
        self, unit: int, refs: Sequence[ImageRef]
    ) -> tuple[dict[int, "_Done"], list[ImageRef]]:
        """What an earlier try has labelled; and the images, those that failed as they are now."""
        records = list(read_images(self._plan.out, self._list, unit))
        entries: dict[int, dict[str, Any]] = {}
        for name in self._writers:
            path = self._plan.out / entries_path(name, unit)
            for index, entry in read_lines(path) if path.is_file() else ():
                entries.setdefault(index, {})[name] = entry
        # A tar is written as one: all of its images are labelled again.
        is_kept = [record.is_ok and not self._plan.settings.as_tar for record in records]
        kept = {
            place: _Done(record, entries.get(record.index, {}))
            for place, record in enumerate(records)
            if is_kept[place]
        }
        now = [
            ref if record.is_ok else replace(ref, stamp=None)
            for ref, record in zip(refs, records, strict=True)
        ]
        return kept, now

    def close(self) -> None:
        """Give the model's memory back."""
        self._model.close()


def entries_path(format_name: str, unit: int) -> str:
    """Of what a format collects of a unit, relative to the job's folder."""
    return f"{ENTRIES}/{format_name}/{unit_name(unit)}{SUFFIX}"


class _Space:
    """Room for the next unit on the disk: a unit that does not fit would be work for nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num_bytes = self._num_images = 0

    def was_taken(self, num_bytes: int, num_images: int) -> None:
        """By a unit."""
        self._num_bytes += num_bytes
        self._num_images += num_images

    def require(self, num_images: int) -> None:
        """Twice what so many images took in the mean must be free.

        Raises:
            ArtifactError: it is not.
        """
        if not self._num_images:
            return
        needed = _SPACE_FACTOR * self._num_bytes / self._num_images * num_images
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            found = (
                f"{free / 1e6:.1f} MB are free, expected {needed / 1e6:.1f} for {num_images} images"
            )
            raise write_error(self._folder, OSError(errno.ENOSPC, found))


@dataclass(frozen=True)
class _Done:
    record: ImageRecord
    entries: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Work:
    """The images of one unit."""

    plan: Plan
    model: TiledPredictor
    writers: Mapping[str, Writer]
    sink: Sink
    timer: StageTimer
    in_progress: InProgress
    huge: threading.Lock
    first: int

    def run(
        self,
        refs: Sequence[ImageRef],
        kept: Mapping[int, _Done],
        task: Task,
        under_way: Callable[[int], object],
    ) -> list[_Done]:
        """What became of each, in their order; see `UnitLabeller.label`."""
        done = dict(kept)
        for place in task.dead:
            reason = "a worker died each time that it took this image"
            done[place] = self._failure(place, refs[place], "worker-died", reason)
        for place in sorted(task.alone - task.dead):
            done |= self._label({place: refs[place]})
        rest = [place for place in range(len(refs)) if place not in done]
        threads = self.plan.model.in_flight + _BESIDE_THE_NETWORK
        for _, some in in_threads(
            self._groups(refs, rest), self._label, threads, on_stop=self.model.close
        ):
            done |= some
            under_way(len(done))
        return [done[place] for place in range(len(refs))]

    def _groups(
        self, refs: Sequence[ImageRef], places: Iterable[int]
    ) -> Iterator[dict[int, ImageRef]]:
        """What goes through the network together.

        Which images that are depends on the unit alone, whoever labels it.
        """
        count = self.plan.settings.batch
        if count == self.plan.model.in_flight == 1:
            yield from ({place: refs[place]} for place in places)
            return
        # A server joins requests of one size, too, if they come close to each other.
        sized = sorted((self._size(refs[place]), place) for place in places)
        for size, equal in groupby(sized, key=lambda pair: pair[0]):
            same = [place for _, place in equal]
            together = 1 if self._is_tiled(size) else count
            for start in range(0, len(same), together):
                yield {place: refs[place] for place in same[start : start + together]}

    def _size(self, ref: ImageRef) -> tuple[int, int]:
        try:
            return read_size(ref, self.plan.settings.max_pixels)
        except (BadImage, MemoryError):  # it will be told when its turn comes
            return (0, 0)

    def _is_tiled(self, size: tuple[int, int]) -> bool:
        return size[0] * size[1] > self.plan.settings.tile_pixels

    def _label(self, refs: Mapping[int, ImageRef]) -> dict[int, _Done]:
        """Images of one size, from file to files."""
        # Threads would hold several huge images, each of gigabytes.
        if self.plan.settings.takes_huge and self._is_tiled(self._size(next(iter(refs.values())))):
            with self.huge:
                return self._label_now(refs)
        return self._label_now(refs)

    def _label_now(self, refs: Mapping[int, ImageRef]) -> dict[int, _Done]:
        done: dict[int, _Done] = {}
        pixels: dict[int, Pixels] = {}
        for place, ref in refs.items():
            self.in_progress.begin(place)
            try:
                with self.timer.stage("read"):
                    pixels[place] = read_pixels(ref, self.plan.settings.max_pixels)
            except BadImage as error:
                done[place] = self._failure(place, ref, error.code, str(error))
        for place, found in self._predictions(refs, pixels).items():
            try:
                if isinstance(found, Exception):
                    raise found
                done[place] = self._finish(place, refs[place], pixels[place], found)
            except _OF_AN_IMAGE as error:
                done[place] = self._failure(place, refs[place], *_reason(error))
        for place in refs:
            self.in_progress.end(place)
        return done

    def _predictions(
        self, refs: Mapping[int, ImageRef], pixels: Mapping[int, Pixels]
    ) -> dict[int, Prediction | Exception]:
        places = list(pixels)
        if not places:
            return {}
        try:
            with self.timer.network():
                labels = [refs[place].labels for place in places]
                found = self.model.predict(list(pixels.values()), labels)
        except _OF_AN_IMAGE as error:
            if len(places) == 1:
                return {places[0]: error}
            alone: dict[int, Prediction | Exception] = {}
            for place in places:  # which of them was it?
                alone |= self._predictions(refs, {place: pixels[place]})
            return alone
        return dict(zip(places, found, strict=True))

    def _finish(self, place: int, ref: ImageRef, pixels: Pixels, made: Prediction) -> _Done:
        """Write what was found, all of it or nothing.

        Raises:
            DataError, MemoryError: it cannot be written; ArtifactError: see `Sink.put`.
        """
        if not _is_finite(made):
            raise DataError("the model gave NaN or infinity: its weights may be damaged")
        label, instances, index = made.label, made.instances, self.first + place
        if self.plan.settings.min_confidence is not None and made.confidence is not None:
            doubtful = made.confidence < self.plan.settings.min_confidence
            label = np.where(doubtful, np.uint8(IGNORE_INDEX), label)
            instances = None if instances is None else instances.without(doubtful)
        image = LabelledImage(ref, index, pixels, label, made.confidence, made.scores, instances)
        files: list[tuple[str, bytes]] = []
        entries = {}
        with self.timer.stage("encode"):
            for name, writer in self.writers.items():
                files += writer.files(image)
                entries[name] = writer.entry(image)
        digest = hashlib.sha256()
        with self.timer.stage("write"):
            for path, data in files:
                digest.update(path.encode("utf-8", "surrogateescape") + b"\0" + data)
                self.sink.put(index, path, data)
        # Row by row, because it counts in a copy of eight bytes a pixel.
        counts = np.zeros(256, np.int64)
        for row in label:
            counts += np.bincount(row, minlength=256)
        found = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
        confidence = made.confidence
        record = ImageRecord(
            index,
            ref.name,
            ref.output,
            OK,
            sha256=digest.hexdigest(),
            size=(pixels.shape[0], pixels.shape[1]),
            pixels=found,
            confidence=None if confidence is None else round(float(confidence.mean()), 6),
            change=None if made.change is None else round(made.change, 6),
            missing=tuple(index for index in ref.labels or () if index + 1 not in found),
            instances=None if instances is None else instances.counts(),
        )
        return _Done(record, entries)

    def _failure(self, place: int, ref: ImageRef, code: str, reason: str) -> _Done:
        return _Done(ImageRecord(self.first + place, ref.name, ref.output, code, reason))


def _reason(error: Exception) -> tuple[str, str]:
    """Code and words of what went wrong in the network."""
    if isinstance(error, MemoryError):
        return "out-of-memory", f"no memory to label it ({error}): make it smaller"
    return "timeout" if isinstance(error, DeadlineError) else "model-failed", str(error)


def _is_finite(made: Prediction) -> bool:
    """Records, and whoever reads scores, know no NaN; a mean tells of one anywhere."""
    planes = (made.confidence, made.scores)
    if made.instances is not None and not np.isfinite(made.instances.scores).all():
        return False
    return all(plane is None or np.isfinite(plane.mean()) for plane in planes)
