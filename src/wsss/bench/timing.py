"""Timing and memory of a function in this process, so that forms can be compared in turn."""

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping

from ..runtime import system


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
