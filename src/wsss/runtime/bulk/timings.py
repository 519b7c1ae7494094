"""Where the time of a job goes: for people to read; no result depends on it.

A `StageTimer` measures a unit, `timings.jsonl` holds a line for each unit, and `Throughput` says
how fast the job was over its time.
"""

import json
import math
import threading
import time
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STAGES = ("read", "network", "encode", "write", "commit")
"""Those that are work; another one is waiting."""


class StageTimer:
    """Adds up stages; its gate lets only so many threads compute at once."""

    def __init__(self, in_network: int) -> None:
        """
        Args:
            in_network: threads that the gate lets in.
        """
        self._gate = threading.Semaphore(in_network)
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._started = self._quiet_since = time.perf_counter()
        self._inside = 0
        self._idle = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Work that counts as `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            with self._lock:
                self._seconds[name] += seconds

    @contextmanager
    def network(self) -> Iterator[None]:
        """Waits for the gate (stage `wait`), then counts as `network`."""
        with self.stage("wait"):
            self._gate.acquire()
        try:
            with self._lock:
                if self._inside == 0:
                    self._idle += time.perf_counter() - self._quiet_since
                self._inside += 1
            with self.stage("network"):
                yield
        finally:
            with self._lock:
                self._inside -= 1
                self._quiet_since = time.perf_counter()
            self._gate.release()

    def seconds(self) -> dict[str, float]:
        """Of each stage, summed over threads; `all` since the beginning; `idle` of the network."""
        now = time.perf_counter()
        with self._lock:
            idle = self._idle + (now - self._quiet_since if self._inside == 0 else 0)
            return {**self._seconds, "all": now - self._started, "idle": idle}


TIMINGS = "timings.jsonl"


@dataclass(frozen=True)
class UnitTiming:
    """One unit.

    Attributes:
        ended: seconds since 1970.
        seconds: see `StageTimer.seconds`.
    """

    unit: int
    images: int
    ended: float
    seconds: dict[str, float]


def timing_line(unit: int, images: int, seconds: Mapping[str, float]) -> bytes:
    """A line of the file, for a unit that ends now."""
    line = {
        "unit": unit,
        "images": images,
        "ended": round(time.time(), 3),
        "seconds": {name: round(value, 6) for name, value in sorted(seconds.items())},
    }
    return json.dumps(line).encode("ascii") + b"\n"


def time_shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """How the work divides into its stages; and the share of a worker's time in which nothing was
    in the network.

    Args:
        seconds: see `StageTimer.seconds`, of one unit or summed.
    """
    parts = {name: seconds.get(name, 0.0) for name in STAGES}
    work, whole = sum(parts.values()), seconds["all"]
    shares = {name: part / work if work else 0.0 for name, part in parts.items()}
    return shares | {"network idle": seconds["idle"] / whole if whole else 0.0}


def read_timings(out: Path) -> Iterator[UnitTiming]:
    """In the order in which units were done; what a crash has left of a line is passed by."""
    try:
        with open(out / TIMINGS, "rb") as file:
            for line in file:
                try:
                    found = json.loads(line)
                    seconds = {str(k): float(v) for k, v in found["seconds"].items()}
                    if not all(map(math.isfinite, seconds.values())):
                        continue
                    yield UnitTiming(
                        int(found["unit"]), int(found["images"]), float(found["ended"]), seconds
                    )
                except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                    continue
    except OSError:
        return


def add_timings(out: Path) -> dict[str, Any]:
    """Over all units: images, seconds of each stage, and the share of a worker's time in which
    nothing was in the network."""
    seconds: defaultdict[str, float] = defaultdict(float)
    images = 0
    for timing in read_timings(out):
        for name, value in timing.seconds.items():
            seconds[name] += value
        images += timing.images
    whole, idle = seconds.pop("all", 0.0), seconds.pop("idle", 0.0)
    return {
        "images": images,
        "worker_seconds": whole,
        "worker_seconds_per_image": whole / images if images else None,
        "share_outside_network": idle / whole if whole else None,
        "stage_seconds": dict(seconds),
    }


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
