"""The walk compiled for the CPU by numba: no temporary arrays, both weights of a pair from cache.

Same flat layout as `walk_torch.py`, with zeros in front and behind instead of shortened vectors,
so that the inner loops need no bounds. Images, and where there are few of them their maps, go to
threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from ..pairs import PairOffsets

Floats = NDArray[np.float32]
Function = TypeVar("Function", bound=Callable[..., Any])

_BLOCK = 4096
"""Cells whose sums stay in the L1 cache while all pairs are added to them."""


def compiled(function: Function) -> Function:
    """Compile once per machine (kept beside the file or in NUMBA_CACHE_DIR), run without the GIL.

    Fused multiply-add is allowed, reordering is not: results depend on no block and no thread.

    Raises:
        RuntimeError: what is compiled can be kept nowhere.
    """
    compile_it: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
    return cast(Function, compile_it(function))


def compiled_exactly(function: Function) -> Function:
    """`compiled` without fused multiply-add: the bits of torch's separate operations."""
    compile_it: Any = njit(nogil=True, cache=True, error_model="numpy")
    return cast(Function, compile_it(function))


def compiled_sum(function: Function) -> Function:
    """`compiled`, where a sum may be split into vector lanes; still the same for every call."""
    options = {"contract", "reassoc", "nsz"}
    compile_it: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath=options)
    return cast(Function, compile_it(function))


class NativeWalk:
    """T of some images of one size; float32 on the CPU. See `FlatWalk`."""

    def __init__(self, scores: Tensor, affinity: Tensor, pairs: PairOffsets) -> None:
        self._scores = np.ascontiguousarray(scores.numpy(), np.float32)
        self._affinity = np.ascontiguousarray(affinity.numpy(), np.float32)
        self._offsets = np.array(pairs.offsets, np.int64)
        self._gap = pairs.radius - 1

    def power(self, steps: int) -> Tensor:
        """T^steps times the scores."""
        only_last = np.zeros(steps + 1, np.float32)
        only_last[-1] = 1
        return self._walk(only_last, is_chebyshev=False)

    def polynomial(self, coefficients: tuple[float, ...]) -> Tensor:
        """Sum of coefficient j times the j-th Chebyshev polynomial of T, times the scores."""
        return self._walk(np.array(coefficients, np.float32), is_chebyshev=True)

    def _walk(self, coefficients: Floats, is_chebyshev: bool) -> Tensor:
        result = np.empty_like(self._scores)
        num_images, num_maps = result.shape[:2]
        threads = torch.get_num_threads()
        # Weights are prepared anew for every task, so maps part only where images do not suffice.
        together = num_maps if num_images >= threads else -(-num_maps * num_images // threads)

        def walk(task: tuple[int, int]) -> None:
            image, first = task
            maps = slice(first, first + together)
            _walk_image(
                self._scores[image, maps],
                self._affinity[image],
                self._offsets,
                self._gap,
                coefficients,
                is_chebyshev,
                result[image, maps],
            )

        tasks = [(i, first) for i in range(num_images) for first in range(0, num_maps, together)]
        if threads == 1 or len(tasks) == 1:
            for task in tasks:
                walk(task)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(walk, tasks))
        return torch.from_numpy(result)


@compiled
def _walk_image(
    scores: Floats,
    affinity: Floats,
    offsets: NDArray[np.int64],
    gap: int,
    coefficients: Floats,
    is_chebyshev: bool,
    result: Floats,
) -> None:
    """(n, h, w) scores -> (n, h, w) result; affinity (K, h, w), offsets (K, 2)."""
    num_maps, height, width = scores.shape
    row = width + gap
    length = height * row
    shifts = offsets[:, 0] * row + offsets[:, 1]
    margin = shifts.max()
    weights = _flat_weights(affinity, offsets, row, margin)
    inverse_degrees = _inverse_degrees(weights, shifts, margin, length)
    state = np.zeros((2, num_maps, length + 2 * margin), np.float32)
    total = np.zeros((num_maps, length), np.float32)
    for c in range(num_maps):
        for y in range(height):
            for x in range(width):
                state[0, c, margin + y * row + x] = scores[c, y, x]
                total[c, y * row + x] = coefficients[0] * scores[c, y, x]
    sums = np.empty((num_maps, _BLOCK), np.float32)
    for order in range(1, len(coefficients)):
        current, previous = state[(order + 1) % 2], state[order % 2]
        factor = np.float32(2.0 if is_chebyshev and order > 1 else 1.0)
        for first in range(0, length, _BLOCK):
            count = min(_BLOCK, length - first)
            _sum_pairs(sums, current, weights, shifts, margin + first, count)
            for c in range(num_maps):
                older = previous[c, margin + first : margin + first + count]
                scale = inverse_degrees[first : first + count]
                for p in range(count):
                    step = factor * scale[p] * sums[c, p]
                    older[p] = step - older[p] if is_chebyshev else step
                if coefficients[order] != 0:
                    kept = total[c, first : first + count]
                    for p in range(count):
                        kept[p] += coefficients[order] * older[p]
    for c in range(num_maps):
        for y in range(height):
            for x in range(width):
                result[c, y, x] = total[c, y * row + x]


@compiled
def _flat_weights(affinity: Floats, offsets: NDArray[np.int64], row: int, margin: int) -> Floats:
    """(K, h, w) -> (K, margin + h * row + margin), 0 where the partner lies outside the grid."""
    num_pairs, height, width = affinity.shape
    weights = np.zeros((num_pairs, height * row + 2 * margin), np.float32)
    for k in range(num_pairs):
        dy, dx = offsets[k]
        for y in range(height - dy):
            for x in range(max(0, -dx), width - max(0, dx)):
                weights[k, margin + y * row + x] = affinity[k, y, x]
    return weights


@compiled
def _inverse_degrees(
    weights: Floats, shifts: NDArray[np.int64], margin: int, length: int
) -> Floats:
    # In float64: rounded degrees would let constants drift over hundreds of steps.
    degrees = np.ones(length, np.float64)
    for k in range(len(shifts)):
        ahead = weights[k, margin : margin + length]
        behind = weights[k, margin - shifts[k] : margin - shifts[k] + length]
        for p in range(length):
            degrees[p] += np.float64(ahead[p]) + np.float64(behind[p])
    return (1 / degrees).astype(np.float32)


@compiled
def _sum_pairs(
    sums: Floats,
    current: Floats,
    weights: Floats,
    shifts: NDArray[np.int64],
    start: int,
    count: int,
) -> None:
    """sums = W current for `count` cells from `start`; two offsets at a time, of which there
    is always an even number, so that sums are loaded and stored half as often."""
    num_maps = len(current)
    for c in range(num_maps):
        sums[c, :count] = current[c, start : start + count]
    for k in range(0, len(shifts), 2):
        s, t = shifts[k], shifts[k + 1]
        w, v = weights[k, start : start + count], weights[k, start - s : start - s + count]
        f, e = weights[k + 1, start : start + count], weights[k + 1, start - t : start - t + count]
        for c in range(0, num_maps - 1, 2):
            maps = slice(c, c + 2)
            _add_to_two(sums[maps], current[maps], w, v, f, e, s, t, start, count)
        if num_maps % 2:
            _add_to_one(sums[-1], current[-1], w, v, f, e, s, t, start, count)


@compiled
def _add_to_one(
    sums: Floats,
    current: Floats,
    w: Floats,
    v: Floats,
    f: Floats,
    e: Floats,
    s: int,
    t: int,
    start: int,
    count: int,
) -> None:
    """Weights w, v of the pairs `s` ahead and behind, f, e of those `t` ahead and behind."""
    ahead, behind = current[start + s : start + s + count], current[start - s : start - s + count]
    far, near = current[start + t : start + t + count], current[start - t : start - t + count]
    for p in range(count):
        sums[p] += w[p] * ahead[p] + v[p] * behind[p] + f[p] * far[p] + e[p] * near[p]


@compiled
def _add_to_two(
    sums: Floats,
    current: Floats,
    w: Floats,
    v: Floats,
    f: Floats,
    e: Floats,
    s: int,
    t: int,
    start: int,
    count: int,
) -> None:
    """`_add_to_one` for two maps, which read each weight once."""
    one, two = sums[0], sums[1]
    first, second = current[0], current[1]
    a, b = first[start + s : start + s + count], first[start - s : start - s + count]
    c, d = first[start + t : start + t + count], first[start - t : start - t + count]
    g, h = second[start + s : start + s + count], second[start - s : start - s + count]
    i, j = second[start + t : start + t + count], second[start - t : start - t + count]
    for p in range(count):
        one[p] += w[p] * a[p] + v[p] * b[p] + f[p] * c[p] + e[p] * d[p]
        two[p] += w[p] * g[p] + v[p] * h[p] + f[p] * i[p] + e[p] * j[p]
