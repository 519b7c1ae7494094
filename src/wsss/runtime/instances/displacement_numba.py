"""Displacement fields followed on the CPU, compiled: a list of cells that shrinks as they rest."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..refine.fast.walk_numba import compiled_exactly
from .settings import ROUND_TRIP, Sizes

Floats = NDArray[np.float32]

_ROWS = 8
"""Rows a task: their positions stay in the L1 cache."""


def refine_natively(field: Tensor, sizes: Sizes, steps: int) -> Tensor:
    """(B, 2, h, w) field on the CPU -> positions; see `refine_centroids`. The bits are torch's."""
    batch, _, height, width = field.shape
    # One more row and column, so that the lower right neighbour of every position exists.
    vectors = np.zeros((batch, height + 1, width + 1, 2), field.numpy().dtype)
    vectors[:, :height, :width] = field.permute(0, 2, 3, 1).numpy()
    result = np.empty((batch, 2, height, width), vectors.dtype)
    result[:, 0], result[:, 1] = np.arange(height)[:, None], np.arange(width)

    def follow(task: tuple[int, int]) -> None:
        image, top = task
        rows, columns = sizes[image]
        place = slice(top, min(top + _ROWS, rows)), slice(columns)
        y, x = (np.ascontiguousarray(plane[place]).ravel() for plane in result[image])
        _follow(vectors[image].ravel(), width + 1, y, x, rows - 1, columns - 1, steps, ROUND_TRIP)
        for plane, values in zip(result[image], (y, x), strict=True):
            plane[place] = values.reshape(-1, columns)

    tasks = [(image, top) for image in range(batch) for top in range(0, sizes[image][0], _ROWS)]
    threads = torch.get_num_threads()
    if threads == 1 or len(tasks) == 1:
        for task in tasks:
            follow(task)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(follow, tasks))
    return torch.from_numpy(result)


@compiled_exactly
def _follow(
    vectors: Floats,
    row: int,
    y: Floats,
    x: Floats,
    last_row: int,
    last_column: int,
    steps: int,
    round_trip: int,
) -> None:
    """Move positions (n,) in place; vectors ((h + 1) * row * 2) hold (dy, dx) of each cell."""
    _step(vectors, row, y, x, last_row, last_column, steps % round_trip)
    moving = np.arange(len(y))
    moving_y, moving_x = y.copy(), x.copy()
    count = len(moving)
    for _ in range(steps // round_trip):
        now_y, now_x = moving_y[:count], moving_x[:count]
        _step(vectors, row, now_y, now_x, last_row, last_column, round_trip)
        kept = 0
        for n in range(count):
            cell = moving[n]
            if y[cell] != now_y[n] or x[cell] != now_x[n]:
                y[cell], x[cell] = now_y[n], now_x[n]
                moving[kept], moving_y[kept], moving_x[kept] = cell, now_y[n], now_x[n]
                kept += 1
        count = kept
        if count == 0:
            break


@compiled_exactly
def _step(
    vectors: Floats, row: int, y: Floats, x: Floats, last_row: int, last_column: int, steps: int
) -> None:
    """Cell after cell inside of a step, so that the processor need not wait for one cell."""
    real = vectors.dtype.type
    for _ in range(steps):
        for n in range(len(y)):
            i, j = np.int32(y[n]), np.int32(x[n])
            down, right = y[n] - real(i), x[n] - real(j)
            up, left = real(1) - down, real(1) - right
            a = 2 * (np.int64(i) * row + j)
            b = a + 2 * row
            above = vectors[a] * left + vectors[a + 2] * right
            below = vectors[b] * left + vectors[b + 2] * right
            moved = y[n] + (above * up + below * down)
            above = vectors[a + 1] * left + vectors[a + 3] * right
            below = vectors[b + 1] * left + vectors[b + 3] * right
            y[n] = min(max(moved, real(0)), real(last_row))
            moved = x[n] + (above * up + below * down)
            x[n] = min(max(moved, real(0)), real(last_column))
