"""Units labelled by processes of this machine, any of which may die.

`multiprocessing.Pool` hangs for ever when a worker is killed, and `ProcessPoolExecutor` fails all
that is pending. Here each worker has a pipe of its own: a death concerns its unit alone, which is
begun again, with the images that were under way one at a time. One that is under way alone at two
deaths is set aside.
"""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from ....errors import WsssError
from ...io.image_io import PIXEL_LIMIT_VARIABLE
from ..plan import Plan, Settings
from .in_progress import clear, num_ended, under_way
from .records import unit_name
from .unit import Task, UnitLabeller, UnitOutcome

GOODBYE_S = 30.0
"""Seconds that units under way get when a job is interrupted."""
_DEATHS_ALONE = 2
_DEATHS_AT_START = 3
"""Workers in a row that end before they label anything, after which the job is given up."""
_LOOK_S = 0.5
_CLOSE_S = 5.0
"""Seconds that an idle worker gets to close its model: a server may hold memory of its."""


@dataclass(frozen=True)
class Attempt:
    """A unit that is not done, and how often each of its images was alone when a worker died."""

    task: Task
    deaths: Mapping[int, int] = field(default_factory=dict)

    def after_death(self, out: Path) -> "Attempt":
        """How to begin again after a worker died of it."""
        task, deaths = self.task, dict(self.deaths)
        suspects, dead = under_way(out, unit_name(task.unit)) - task.dead, task.dead
        if len(suspects) == 1 and suspects <= task.alone:
            (suspect,) = suspects
            deaths[suspect] = deaths.get(suspect, 0) + 1
            if deaths[suspect] >= _DEATHS_ALONE:
                dead |= suspects
        return Attempt(replace(task, alone=task.alone | suspects, dead=dead), deaths)


@dataclass
class Worker:
    """Someone who labels units, one at a time."""

    attempt: Attempt | None = None
    has_worked: bool = False


AnyWorker = TypeVar("AnyWorker", bound=Worker)


class Watcher(Protocol):
    """Who wants to know how it goes."""

    def under_way(self, ended: int) -> None:
        """Images that are through in the units under way."""

    def stopping(self, seconds: float) -> None:
        """Units under way get these seconds to finish."""


def worker_environment(settings: Settings) -> dict[str, str]:
    """Variables that must be there when a worker starts: decoders read their limit only once."""
    return {PIXEL_LIMIT_VARIABLE: str(settings.max_pixels)} if settings.takes_huge else {}


def label_here(plan: Plan, tasks: Iterable[Task], watcher: Watcher) -> Iterator[UnitOutcome]:
    """Outcomes of units, one after the other, in this process: nothing starts, nothing survives."""
    with closing(UnitLabeller(plan)) as labeller:
        for task in tasks:
            yield labeller.label(task, watcher.under_way)


def label_in_processes(
    plan: Plan, tasks: Iterable[Task], num_workers: int, watcher: Watcher
) -> Iterator[UnitOutcome]:
    """Outcomes of units, as they are done.

    On an interruption (an exception in the caller, Ctrl-C) units under way are finished, for at
    most `GOODBYE_S`, and counted; a second one ends at once.

    Raises:
        WsssError: what a worker raised, which is no fault of an image; or workers that die before
        they begin.
    """
    yield from outcomes(_ProcessPool(plan, num_workers, watcher), tasks)


def outcomes(pool: "Pool[AnyWorker]", tasks: Iterable[Task]) -> Iterator[UnitOutcome]:
    """What a pool makes of units; see `label_in_processes`."""
    try:
        yield from pool.run(iter(tasks))
    except (GeneratorExit, KeyboardInterrupt):
        pool.finish_begun()
        raise
    finally:
        pool.end()


Message = UnitOutcome | BaseException
"""What a worker says of its unit."""


@dataclass(frozen=True)
class Death:
    """Instead of a message, with what is known of the cause."""

    cause: str


class Pool(ABC, Generic[AnyWorker]):
    """Gives units to workers, and begins again what dead ones had; kinds of workers differ."""

    def __init__(self, plan: Plan, num_workers: int, watcher: Watcher) -> None:
        self.plan, self._num_workers, self._watcher = plan, num_workers, watcher
        self.workers: list[AnyWorker] = []
        self._again: deque[Attempt] = deque()
        self._deaths_at_start = 0

    @abstractmethod
    def start(self) -> AnyWorker:
        """One more worker."""

    @abstractmethod
    def send(self, worker: AnyWorker, task: Task) -> None:
        """Let it begin with a unit; if it is dead, `hear` will tell."""

    @abstractmethod
    def hear(self, seconds: float) -> Iterator[tuple[AnyWorker, Message | Death]]:
        """What workers say, waiting so long for the first of them."""

    @abstractmethod
    def kill(self, workers: Sequence[AnyWorker]) -> None:
        """End workers, or clear away dead ones."""

    def can_begin(self, worker: AnyWorker) -> bool:
        """Whether a unit may be sent to it."""
        return worker.attempt is None

    def run(self, tasks: Iterator[Task]) -> Iterator[UnitOutcome]:
        """Outcomes as they come."""
        is_more = True
        while True:
            while is_more or self._again:
                worker = self._free_worker()
                if worker is None:
                    break
                if self._again:
                    self._give(worker, self._again.popleft())
                elif (task := next(tasks, None)) is not None:
                    self._give(worker, Attempt(task))
                else:
                    is_more = False
            if not (is_more or self._again or self._is_busy()):
                return
            yield from self._look()
            self._watcher.under_way(self._ended())

    def finish_begun(self) -> None:
        """Let units under way finish; their records count for the next run."""
        if not self._is_busy():
            return
        self._watcher.stopping(GOODBYE_S)
        end = time.monotonic() + GOODBYE_S
        while self._is_busy() and time.monotonic() < end:
            for _ in self._look():
                pass

    def end(self) -> None:
        """Kill what still runs."""
        self.kill(self.workers)
        self.workers.clear()

    def _is_busy(self) -> bool:
        return any(worker.attempt for worker in self.workers)

    def _free_worker(self) -> AnyWorker | None:
        idle = [worker for worker in self.workers if self.can_begin(worker)]
        while not idle and len(self.workers) < self._num_workers:
            self.workers.append(self.start())
            idle = [worker for worker in self.workers[-1:] if self.can_begin(worker)]
        return idle[0] if idle else None

    def _give(self, worker: AnyWorker, attempt: Attempt) -> None:
        worker.attempt = attempt
        # Of an earlier run, whose deaths are not ours.
        clear(self.plan.out, unit_name(attempt.task.unit))
        self.send(worker, attempt.task)

    def _look(self) -> Iterator[UnitOutcome]:
        """Messages of workers, and their deaths."""
        for worker, message in self.hear(_LOOK_S):
            if isinstance(message, Death):
                self._bury(worker, message)
            elif isinstance(message, BaseException):
                raise message
            else:
                worker.attempt, worker.has_worked = None, True
                self._deaths_at_start = 0
                yield message

    def _bury(self, worker: AnyWorker, death: Death) -> None:
        self.kill([worker])
        self.workers.remove(worker)
        is_explained = False
        if worker.attempt is not None:
            attempt = worker.attempt.after_death(self.plan.out)
            self._again.append(attempt)
            is_explained = attempt != worker.attempt  # by images that were under way
        if worker.has_worked or is_explained:
            return
        self._deaths_at_start += 1
        if self._deaths_at_start >= _DEATHS_AT_START:
            raise WsssError(
                f"{self._deaths_at_start} workers in a row ended before their first image "
                f"({death.cause}): use fewer `workers`"
            )

    def _ended(self) -> int:
        units = [worker.attempt.task.unit for worker in self.workers if worker.attempt]
        return sum(num_ended(self.plan.out, unit_name(unit)) for unit in units)


@dataclass
class _Process(Worker):
    process: BaseProcess = field(kw_only=True)
    pipe: Connection = field(kw_only=True)


class _ProcessPool(Pool[_Process]):
    def __init__(self, plan: Plan, num_workers: int, watcher: Watcher) -> None:
        super().__init__(plan, num_workers, watcher)
        # fork would copy the threads' locks of onnxruntime and torch in whatever state they are.
        self._context = multiprocessing.get_context("spawn")

    def start(self) -> _Process:
        """See `Pool.start`."""
        here, there = self._context.Pipe()
        process = self._context.Process(target=_work, args=(self.plan, there), daemon=True)
        with environment(worker_environment(self.plan.settings)), _without_signals():
            process.start()
        there.close()
        return _Process(process=process, pipe=here)

    def send(self, worker: _Process, task: Task) -> None:
        """See `Pool.send`."""
        with suppress(OSError):
            worker.pipe.send(task)

    def hear(self, seconds: float) -> Iterator[tuple[_Process, Message | Death]]:
        """See `Pool.hear`."""
        pipes = {worker.pipe: worker for worker in self.workers if worker.attempt}
        for pipe in wait(list(pipes), seconds):
            worker = pipes[pipe]  # type: ignore[index]
            try:
                yield worker, worker.pipe.recv()
            except (EOFError, OSError):
                worker.process.join()
                code = worker.process.exitcode
                yield worker, Death(f"exit code {code}; -9 is often too little memory")

    def kill(self, workers: Sequence[_Process]) -> None:
        """See `Pool.kill`."""
        for worker in workers:
            worker.pipe.close()
            if worker.attempt is not None:
                worker.process.kill()
        for worker in workers:
            if worker.attempt is None:  # it ends by itself, and closes what it has open
                worker.process.join(_CLOSE_S)
                worker.process.kill()
        for worker in workers:
            worker.process.join()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """What a process that starts meanwhile gets."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _without_signals() -> Iterator[None]:
    """A process that starts meanwhile never hears of Ctrl-C and SIGTERM.

    They reach all processes of a group; the first one decides when to stop. That a worker ignores
    them would be too late: it imports for a second before it could.
    """
    resource_tracker.ensure_running()  # which would let them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(plan: Plan, pipe: Connection) -> None:
    """A worker: units come in, outcomes go out, until the other end is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with closing(UnitLabeller(plan)) as labeller:
            while True:
                pipe.send(labeller.label(pipe.recv()))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        pipe.send(message_of(error))


def message_of(error: Exception) -> Exception:
    """What a worker sends of an error: ours as it is, of others a type that can travel."""
    if isinstance(error, WsssError):
        return error
    return RuntimeError(f"in a worker:\n{''.join(traceback.format_exception(error))}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
