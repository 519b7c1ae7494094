"""How fast a job was over its time, from the times at which its units ended."""

import math
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..timings import read_timings

_NUM_POINTS = 100
_PAUSE = 60.0
"""Seconds without a unit under way, from which on they count as a pause."""

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Throughput:
    """Images a second over the time in which units were under way; pauses are left out.

    Attributes:
        seconds: middle of each stretch of time, from the beginning of the job.
        rates: images a second in it.
        at_work: seconds altogether.
        images: through in that time; those that were tried again count again.
        first, last: when the first unit began and the last one ended, seconds since 1970.
        pauses: between them.
    """

    seconds: list[float]
    rates: list[float]
    at_work: float
    images: int
    first: float
    last: float
    pauses: int


def measure_throughput(out: Path) -> Throughput | None:
    """Of all units so far; None where none has ended."""
    starts, ends, images = array("d"), array("d"), array("d")
    for timing in read_timings(out):
        seconds = timing.seconds.get("all", 0.0)
        start = timing.ended - seconds
        if math.isfinite(start) and seconds > 0 and start > 0 and timing.images >= 0:
            starts.append(start)
            ends.append(timing.ended)
            images.append(timing.images)
    if not starts:
        return None
    return _throughput(*(np.frombuffer(values, np.float64) for values in (starts, ends, images)))


def _throughput(starts: Times, ends: Times, images: Times) -> Throughput:
    begins, lengths = _stretches_at_work(starts, ends)
    before = np.cumsum(lengths) - lengths  # work done when each stretch begins
    at_work = float(lengths.sum())
    edges = np.linspace(0, at_work, min(_NUM_POINTS, len(starts)) + 1)
    place = np.searchsorted(before, edges, "right") - 1
    moments = begins[place] + (edges - before[place])
    # A unit's images are spread evenly over its time.
    through = [float((images * ((t - starts) / (ends - starts)).clip(0, 1)).sum()) for t in moments]
    rates = np.diff(through) / np.diff(edges)
    return Throughput(
        ((edges[1:] + edges[:-1]) / 2).tolist(),
        rates.tolist(),
        at_work,
        int(images.sum()),
        float(starts.min()),
        float(ends.max()),
        len(begins) - 1,
    )


def _stretches_at_work(starts: Times, ends: Times) -> tuple[Times, Times]:
    """Beginning and length of each stretch of time without a pause."""
    order = np.argsort(starts, kind="stable")
    last = np.maximum.accumulate(ends[order])
    is_new = np.append(True, starts[order][1:] > last[:-1] + _PAUSE)
    begins = starts[order][is_new]
    finishes = last[np.append(np.flatnonzero(is_new)[1:] - 1, len(order) - 1)]
    return begins, finishes - begins
