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
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from ...errors import WsssError
from .marks import clear, num_ended, under_way
from .plan import Plan
from .records import unit_name
from .unit import Task, UnitLabeller, UnitOutcome

GOODBYE_S = 30.0
"""Seconds that units under way get when a job is interrupted."""
_DEATHS_ALONE = 2
_DEATHS_AT_START = 3
"""Workers in a row that end before they label anything, after which the job is given up."""
_LOOK_S = 0.5


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


class Watcher(Protocol):
    """Who wants to know how it goes."""

    def under_way(self, ended: int) -> None:
        """Images that are through in the units under way."""

    def stopping(self, seconds: float) -> None:
        """Units under way get these seconds to finish."""


def label_here(plan: Plan, tasks: Iterable[Task]) -> Iterator[UnitOutcome]:
    """Outcomes of units, one after the other, in this process: nothing starts, nothing survives."""
    labeller = UnitLabeller(plan)
    try:
        for task in tasks:
            yield labeller.label(task)
    finally:
        labeller.close()


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
    pool = _Pool(plan, num_workers, watcher)
    try:
        yield from pool.run(iter(tasks))
    except (GeneratorExit, KeyboardInterrupt):
        pool.finish_begun()
        raise
    finally:
        pool.end()


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    attempt: Attempt | None = None
    has_worked: bool = False


class _Pool:
    def __init__(self, plan: Plan, num_workers: int, watcher: Watcher) -> None:
        # fork would copy the threads' locks of onnxruntime and torch in whatever state they are.
        self._context = multiprocessing.get_context("spawn")
        self._plan, self._num_workers, self._watcher = plan, num_workers, watcher
        self._workers: list[_Worker] = []
        self._again: deque[Attempt] = deque()
        self._deaths_at_start = 0

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
            if not any(worker.attempt for worker in self._workers):
                return
            yield from self._look()
            self._watcher.under_way(self._ended())

    def finish_begun(self) -> None:
        """Let units under way finish; their records count for the next run."""
        if not any(worker.attempt for worker in self._workers):
            return
        self._watcher.stopping(GOODBYE_S)
        end = time.monotonic() + GOODBYE_S
        while any(worker.attempt for worker in self._workers) and time.monotonic() < end:
            for _ in self._look():
                pass

    def end(self) -> None:
        """Kill what still runs."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()
        self._workers.clear()

    def _free_worker(self) -> _Worker | None:
        for worker in self._workers:
            if worker.attempt is None:
                return worker
        if len(self._workers) == self._num_workers:
            return None
        here, there = self._context.Pipe()
        process = self._context.Process(target=_work, args=(self._plan, there), daemon=True)
        process.start()
        there.close()
        worker = _Worker(process, here)
        self._workers.append(worker)
        return worker

    def _give(self, worker: _Worker, attempt: Attempt) -> None:
        worker.attempt = attempt
        clear(
            self._plan.out, unit_name(attempt.task.unit)
        )  # of an earlier run, whose deaths are not ours
        with suppress(OSError):  # it died; `_look` will see that
            worker.pipe.send(attempt.task)

    def _look(self) -> Iterator[UnitOutcome]:
        """Messages of workers, and their deaths."""
        pipes = {worker.pipe: worker for worker in self._workers if worker.attempt}
        for pipe in wait(list(pipes), _LOOK_S):
            worker = pipes[pipe]  # type: ignore[index]
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            if isinstance(message, BaseException):
                raise message
            worker.attempt, worker.has_worked = None, True
            self._deaths_at_start = 0
            yield message

    def _bury(self, worker: _Worker) -> None:
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        assert worker.attempt is not None
        attempt = worker.attempt.after_death(self._plan.out)
        self._again.append(attempt)
        if worker.has_worked or attempt.task.alone:
            return
        self._deaths_at_start += 1
        if self._deaths_at_start >= _DEATHS_AT_START:
            raise WsssError(
                f"{self._deaths_at_start} workers in a row ended before their first image (exit "
                f"code {worker.process.exitcode}; -9 is often too little memory): have fewer "
                "--workers"
            )

    def _ended(self) -> int:
        units = [worker.attempt.task.unit for worker in self._workers if worker.attempt]
        return sum(num_ended(self._plan.out, unit_name(unit)) for unit in units)


def _work(plan: Plan, pipe: Connection) -> None:
    """A worker: units come in, outcomes go out, until the other end is closed."""
    # Ctrl-C reaches the whole group; the first process decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        labeller = UnitLabeller(plan)
        while True:
            pipe.send(labeller.label(pipe.recv()))
    except EOFError:
        return
    except WsssError as error:
        pipe.send(error)
    except Exception:  # whose own type may not travel
        pipe.send(RuntimeError(f"in a worker:\n{traceback.format_exc()}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
