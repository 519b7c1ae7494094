"""Where the time of a job went, unit by unit: figures for people, which no result depends on."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .work.stage_timer import STAGES
from .work.unit import UnitOutcome

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


def timing_line(outcome: UnitOutcome) -> bytes:
    """A line of the file."""
    summary = outcome.summary
    line = {
        "unit": summary.unit,
        "images": summary.num_images,
        "ended": round(time.time(), 3),
        "seconds": {name: round(value, 6) for name, value in sorted(outcome.seconds.items())},
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
