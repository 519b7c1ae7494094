"""Scores of tiles put together: blended where tiles overlap, and in coarse cells for the whole."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...predictor import Prediction
from ...refine.grid_cells import cells_at

CELL = 32
"""Side in pixels of the squares in which the scores of a tiled image are given."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Tile:
    """A labelled tile.

    Attributes:
        rows, columns: of the image.
        row_window, column_window: what it counts in each of them, 0 to 1.
    """

    rows: slice
    columns: slice
    row_window: Floats
    column_window: Floats
    found: Prediction

    def inside(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        """Pixels of the image as pixels of the tile, in which they lie."""
        return _shifted(rows, self.rows.start), _shifted(columns, self.columns.start)

    def planes(self, rows: slice, columns: slice, num_planes: int) -> Floats:
        """(num_planes, rows, columns) scores of pixels of the tile.

        Without scores, 1 for the label of each pixel: the tile that counts more there decides.
        """
        scores, size = self.found.scores, self.found.label.shape
        if scores is None:
            numbers = np.arange(num_planes, dtype=np.uint8)[:, None, None]
            return np.asarray(self.found.label[rows, columns] == numbers, np.float32)
        if scores.shape[1:] == size:
            return scores[:, rows, columns]
        stretched = _stretched(scores, 1, rows, size[0], self.found.align)
        return _stretched(stretched, 2, columns, size[1], self.found.align)


class Seam:
    """A rectangle of an image that several tiles cover; their scores are summed in it."""

    def __init__(self, rows: slice, columns: slice, num_planes: int) -> None:
        self._rows, self._columns = rows, columns
        self._total = np.zeros((num_planes, *_size(rows, columns)), np.float32)

    def add(self, tile: Tile) -> None:
        """What a tile says of its part of the rectangle."""
        rows, columns = _common(self._rows, tile.rows), _common(self._columns, tile.columns)
        there = _shifted(rows, self._rows.start), _shifted(columns, self._columns.start)
        rows, columns = tile.inside(rows, columns)
        weight = tile.row_window[rows][:, None] * tile.column_window[columns]
        planes = tile.planes(rows, columns, len(self._total))
        for sum_, plane in zip(self._total, planes, strict=True):
            sum_[there] += plane * weight

    def write(self, label: NDArray[np.uint8], confidence: Floats | None) -> None:
        """Winners of the sums, and their share of all scores, into the maps of the image."""
        label[self._rows, self._columns] = self._total.argmax(0)
        if confidence is not None:
            share = self._total.max(0) / np.maximum(self._total.sum(0), np.float32(1e-6))
            confidence[self._rows, self._columns] = share


class CoarseScores:
    """Means of the scores in squares of `CELL` pixels; what is left over goes to the last ones."""

    def __init__(self, height: int, width: int, num_planes: int) -> None:
        self._size = (max(1, height // CELL), max(1, width // CELL))
        self._total = np.zeros((num_planes, *self._size), np.float32)
        self._weight = np.zeros(self._size, np.float32)

    def add(self, tile: Tile, scores: Floats) -> None:
        """The scores of a tile, on whatever grid they are."""
        by_row, rows, row_cells = self._places(tile.rows, tile.row_window, scores.shape[1], 0)
        by_column, columns, column_cells = self._places(
            tile.columns, tile.column_window, scores.shape[2], 1
        )
        here = np.ix_(row_cells, column_cells)
        for sum_, plane in zip(self._total, scores, strict=True):
            summed = np.add.reduceat(plane * by_row[:, None], rows, axis=0)
            sum_[here] += np.add.reduceat(summed * by_column, columns, axis=1)
        row_weight, column_weight = (
            np.add.reduceat(by_row, rows),
            np.add.reduceat(by_column, columns),
        )
        self._weight[here] += row_weight[:, None] * column_weight

    def mean(self) -> Floats:
        """(C + 1, h, w) float32."""
        return np.asarray(self._total / np.maximum(self._weight, 1e-6), np.float32)

    def _places(
        self, pixels: slice, window: Floats, count: int, axis: int
    ) -> tuple[Floats, NDArray[np.intp], NDArray[np.intp]]:
        """Of `count` samples along a tile: their weights, the first of each cell, the cells."""
        centres = (np.arange(count) + 0.5) * (len(window) / count)
        cells = np.minimum((pixels.start + centres) // CELL, self._size[axis] - 1).astype(np.intp)
        numbers, first = np.unique(cells, return_index=True)
        return window[centres.astype(np.intp)], first, numbers


def _stretched(maps: Floats, axis: int, pixels: slice, length: int, align: str) -> Floats:
    """Grid maps at some pixels of an axis: `geometry.to_full_size`, of which a part is wanted."""
    count = maps.shape[axis]
    places = np.arange(pixels.start, pixels.stop, dtype=np.float64)
    places = cells_at(places, count, length, align)
    low = places.astype(np.intp)
    high = np.minimum(low + 1, count - 1)
    shape = [-1 if i == axis else 1 for i in range(3)]
    share = (places - low).astype(np.float32).reshape(shape)
    stretched = maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share
    return np.asarray(stretched, np.float32)


def _common(first: slice, second: slice) -> slice:
    return slice(max(first.start, second.start), min(first.stop, second.stop))


def _shifted(pixels: slice, start: int) -> slice:
    return slice(pixels.start - start, pixels.stop - start)


def _size(rows: slice, columns: slice) -> tuple[int, int]:
    return rows.stop - rows.start, columns.stop - columns.start
