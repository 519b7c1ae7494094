"""Distances of features compiled for the CPU: each pair is one pass over two rows of channels."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..pairs import Borders, PairOffsets
from .walk_numba import compiled_sum

_ROWS = 8
"""Rows a task: their features and those of their partners stay in the L2 cache."""


def feature_distances(cells: Tensor, pairs: PairOffsets, borders: Borders) -> Tensor:
    """Mean over channels of |f_i - f_j|, infinite where there is no pair.

    Args:
        cells: (B, h, w, C) float32 on the CPU, contiguous.

    Returns:
        (B, K, h, w) float32; each image by itself.
    """
    batch, height, width, _ = cells.shape
    result = np.full((batch, len(pairs), height, width), np.inf, np.float32)
    regions = [pairs.from_cells(offset, (height, width), borders) for offset in pairs.offsets]
    limits = np.array([(r.start, r.stop, c.start, c.stop) for r, c in regions], np.int64)
    offsets = np.array(pairs.offsets, np.int64)
    features = cells.numpy()

    def fill(task: tuple[int, int]) -> None:
        image, top = task
        _fill_rows(features[image], offsets, limits, top, top + _ROWS, result[image])

    tasks = [(image, top) for image in range(batch) for top in range(0, height, _ROWS)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, tasks))
    return torch.from_numpy(result)


@compiled_sum
def _fill_rows(
    features: NDArray[np.float32],
    offsets: NDArray[np.int64],
    limits: NDArray[np.int64],
    top: int,
    bottom: int,
    result: NDArray[np.float32],
) -> None:
    """Planes (K, h, w) of the from-cells in some rows; limits (K, 4) of rows and columns."""
    channels = features.shape[2]
    for k in range(len(offsets)):
        dy, dx = offsets[k]
        first_row, last_row, first_column, last_column = limits[k]
        for y in range(max(top, first_row), min(bottom, last_row)):
            for x in range(first_column, last_column):
                one, other = features[y, x], features[y + dy, x + dx]
                total = np.float32(0)
                for c in range(channels):
                    total += abs(one[c] - other[c])
                result[k, y, x] = total / np.float32(channels)
