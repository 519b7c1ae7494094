"""Timing and memory of forms of one computation, in this process and in turn, and their stages."""

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from torch import nn

from ..runtime import system

READ, WRITE = "read", "encode, write"
RESIZE, MERGE = "resize, normalise", "merge"
RESIZE_AND_MERGE = "resize, normalise, merge"
"""Where a form does both in one function, so that nobody can tell them apart."""
CAM_NETWORK, CLASSIFIER, SEGMENTER = "CAM network", "classifier", "segmenter network"
AFFINITY_NETWORK, AFFINITY, WALK, LABEL = "affinity network", "affinity", "walk", "label"
OTHER = "other"

DISK = frozenset({READ, WRITE})
NETWORKS = frozenset({CAM_NETWORK, CLASSIFIER, SEGMENTER, AFFINITY_NETWORK})
NETWORKS_AND_WALK = NETWORKS | {AFFINITY, WALK}
"""Everything else of labelling is to cost little; making affinities counts as part of the walk."""

Result = TypeVar("Result")
Form = Callable[["StageClock"], Result]
"""Computes something and charges its time to stages of the clock."""


class StageClock:
    """Seconds of each stage; a stage inside of another interrupts it."""

    def __init__(self, synchronise: Callable[[], None] = lambda: None) -> None:
        self._synchronise = synchronise
        self._open: list[tuple[str, float]] = []
        self._since = 0.0
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, factor: float = 1.0) -> Iterator[None]:
        """Charge the time inside to a stage.

        Args:
            factor: of the time that is charged, where only a part of the work is done.
        """
        self.begin(name, factor)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str, factor: float = 1.0) -> None:
        """`stage` for hooks, which have a function at either end."""
        self._charge()
        self._open.append((name, factor))

    def end(self) -> None:
        """End of what `begin` began last."""
        self._charge()
        self._open.pop()

    def take(self) -> dict[str, float]:
        """Seconds by stage, in the order in which they began; the clock starts anew."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _charge(self) -> None:
        self._synchronise()
        now = time.perf_counter()
        if self._open:
            name, factor = self._open[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + factor * (now - self._since)
        self._since = now


@contextmanager
def charged(clock: StageClock, name: str, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside of it, the time within these modules belongs to a stage of their own."""
    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(lambda *_: clock.begin(name)))
        handles.append(module.register_forward_hook(lambda *_: clock.end(), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Timing(Generic[Result]):
    """A form that was run.

    Attributes:
        seconds: of one call, the median.
        stages: seconds by stage; their sum is `seconds`.
    """

    result: Result
    seconds: float
    stages: dict[str, float]

    def of_each(self, count: int) -> "Timing[Result]":
        """Seconds of one of the things that a call computes."""
        stages = {name: seconds / count for name, seconds in self.stages.items()}
        return replace(self, seconds=self.seconds / count, stages=stages)

    def with_parts(self, stage: str, shares: Mapping[str, float]) -> "Timing[Result]":
        """A stage divided by shares of it that were measured elsewhere."""
        stages: dict[str, float] = {}
        for name, seconds in self.stages.items():
            for part, share in shares.items() if name == stage else ((name, 1.0),):
                stages[part] = stages.get(part, 0.0) + share * seconds
        return replace(self, stages=stages)

    def share(self, names: Iterable[str], without: Iterable[str] = ()) -> float:
        """Of some stages in the time of all but those left out, in [0, 1]."""
        left_out = set(without)
        whole = sum(value for name, value in self.stages.items() if name not in left_out)
        return sum(self.stages.get(name, 0.0) for name in names) / whole

    @property
    def slowest(self) -> str:
        """The stage that limits the speed."""
        return max(self.stages, key=lambda name: self.stages[name])


def time_forms(
    forms: Mapping[str, Form[Result]],
    *,
    rounds: int,
    synchronise: Callable[[], None],
    check: Callable[[str, Result], None] = lambda name, result: None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Timing[Result]]:
    """Run every form once and check its result, then all in turn for some rounds.

    A form's time is the sum of its stages.

    Args:
        check: gets name and result before anything is timed, and raises where it is wrong.
        advance: called behind every run.
    """
    clock = StageClock(synchronise)
    results = {}
    for name, form in forms.items():
        results[name] = form(clock)
        clock.take()
        check(name, results[name])
        advance()
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, form in forms.items():
            form(clock)
            taken[name].append(clock.take())
            advance()
    return {name: _timing(results[name], taken[name]) for name in forms}


def _timing(result: Result, taken: list[dict[str, float]]) -> Timing[Result]:
    seconds = statistics.median(sum(stages.values()) for stages in taken)
    names = [name for name in taken[0] if all(name in stages for stages in taken)]
    medians = {name: statistics.median(stages[name] for stages in taken) for name in names}
    # Medians of parts do not add up to the median of the whole.
    factor = seconds / sum(medians.values())
    return Timing(result, seconds, {name: factor * value for name, value in medians.items()})


@dataclass(frozen=True)
class StageRow:
    """One stage of a form.

    Attributes:
        part: cam, walk or segmenter.
        share: of the form's time, in [0, 1].
    """

    part: str
    form: str
    stage: str
    seconds_per_image: float
    share: float


def stage_rows(part: str, form: str, timing: Timing[Result]) -> list[StageRow]:
    """A line for each stage."""
    return [
        StageRow(part, form, name, seconds, seconds / timing.seconds)
        for name, seconds in timing.stages.items()
    ]


def median_seconds(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    synchronise: Callable[[], None],
) -> dict[str, float]:
    """Median of `timed_rounds`."""
    seconds = timed_rounds(functions, rounds=rounds, synchronise=synchronise)
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed_rounds(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    synchronise: Callable[[], None],
) -> dict[str, list[float]]:
    """Seconds of each function over rounds in which each runs once, after one warm-up.

    Args:
        synchronise: waits for a device; nothing to do on a CPU.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(-1, rounds):
        for name, function in functions.items():
            synchronise()
            started = time.perf_counter()
            function()
            synchronise()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def peak_bytes(function: Callable[[], object]) -> int | None:
    """Greatest growth of this process's memory while the function runs; None where unknown."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # freed blocks would be used again without showing
    if not system.forget_peak():
        return None
    before = system.resident_bytes()
    result = function()
    grown = system.peak_bytes() - before
    del result
    return max(grown, 0)
