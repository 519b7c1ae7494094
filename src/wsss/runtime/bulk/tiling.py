"""Huge images through a model that takes small ones: in tiles that overlap and are blended.

Where one tile covers a pixel, its label and confidence stand as they are; where tiles overlap,
their scores are summed by windows that sum to 1, so that nothing jumps at a seam. What is in memory
besides the image and its label and confidence (8 bytes a pixel in all): one tile in the network,
and the scores of two bands as high as the overlap, (C + 1) x 256 x W x 4 bytes each.

What a tile cannot know: a class named for the image may be absent from it, so its classifier
decides which of the named ones are there (`AnyOf`); and class activation maps are divided by their
maximum in the tile, not in the image. Nor which instances of two tiles are one object: so it is
what instances are made from that is blended, and instances are grouped in the whole image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ..predictor import AnyOf, Prediction, Predictor, PredictorSpec, group_instances
from ..refine.grid_cells import cells_at

if TYPE_CHECKING:
    from ..instances.maps import TiledMaps  # which imports torch

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


Pixels = NDArray[np.uint8]


class TiledPredictor:
    """A predictor of a job, in its mode; images of up to `tile_pixels` go through untouched."""

    def __init__(self, model: Predictor, spec: PredictorSpec, tile_pixels: int) -> None:
        self._model, self._num_planes = model, len(spec.classes) + 1
        self._mode, self._crf = spec.mode, spec.crf
        self._tile_pixels = tile_pixels

    def predict(
        self, images: Sequence[Pixels], labels: Sequence[Sequence[int] | None]
    ) -> list[Prediction]:
        """Label images of one size.

        Raises:
            DataError, ShapeError, DeadlineError, MemoryError: it fails on these images; any other
            error ends the job.
        """
        height, width = images[0].shape[:2]
        if height * width <= self._tile_pixels:
            found = self._model.predict_equal(images, labels, self._mode, self._crf)
            return group_instances(found)
        return [
            self._in_tiles(image, None if given is None else AnyOf(given))
            for image, given in zip(images, labels, strict=True)
        ]

    def close(self) -> None:
        """Release the memory of the model."""
        self._model.close()

    def _in_tiles(self, image: Pixels, labels: AnyOf | None) -> Prediction:
        height, width = image.shape[:2]
        side = math.isqrt(self._tile_pixels)
        rows, columns = Cuts.of(height, side), Cuts.of(width, side)
        whole = _Whole(height, width, self._num_planes)
        above: Seam | None = None
        for y in range(len(rows.starts)):
            below = whole.seam(rows.overlap(y), slice(0, width))
            left: Seam | None = None
            for x in range(len(columns.starts)):
                right = whole.seam(rows.core(y), columns.overlap(x))
                pixels = np.ascontiguousarray(image[rows.tile(y), columns.tile(x)])
                (found,) = self._model.predict_equal([pixels], [labels], self._mode, self._crf)
                if found.instances is not None:
                    raise DataError(
                        f"an image of {height} x {width} is labelled in tiles, across which this "
                        f"model tells no instances: give `tile_pixels` {height * width} or more, "
                        "or label without instances"
                    )
                tile = Tile(rows.tile(y), columns.tile(x), rows.window(y), columns.window(x), found)
                whole.add(tile, rows.core(y), columns.core(x))
                for seam in (above, below, left, right):
                    if seam is not None:
                        seam.add(tile)
                whole.write(left)
                left = right
            whole.write(above)
            above = below
        return group_instances([whole.prediction()])[0]


class _Whole:
    """The prediction for an image, as it grows."""

    def __init__(self, height: int, width: int, num_planes: int) -> None:
        self._num_planes = num_planes
        self._label = np.empty((height, width), np.uint8)
        self._confidence: NDArray[np.float32] | None = None
        self._scores: CoarseScores | None = None
        self._maps: TiledMaps | None = None
        self._changed = self._walked = 0.0

    def seam(self, rows: slice | None, columns: slice | None) -> Seam | None:
        """Where several tiles lie; None: nowhere."""
        if rows is None or columns is None:
            return None
        return Seam(rows, columns, self._num_planes)

    def add(self, tile: Tile, rows: slice, columns: slice) -> None:
        """A tile, of which these pixels are its own."""
        found, inside = tile.found, tile.inside(rows, columns)
        self._label[rows, columns] = found.label[inside]
        if found.confidence is not None:
            if self._confidence is None:
                self._confidence = np.empty(self._label.shape, np.float32)
            self._confidence[rows, columns] = found.confidence[inside]
        if found.scores is not None:
            if self._scores is None:
                self._scores = CoarseScores(*self._label.shape, self._num_planes)
            self._scores.add(tile, found.scores)
        if found.maps is not None:
            from ..instances.maps import Span, TiledMaps

            if self._maps is None:
                self._maps = TiledMaps((self._label.shape[0], self._label.shape[1]))
            spans = Span(tile.rows, tile.row_window), Span(tile.columns, tile.column_window)
            self._maps.add(*spans, found.maps)
        if found.change is not None:
            # Pixels that count as its own: a tile in the middle of an image shares more of them.
            own = float(tile.row_window.sum()) * float(tile.column_window.sum())
            self._changed += own * found.change
            self._walked += own

    def write(self, seam: Seam | None) -> None:
        """A seam to which all of its tiles were added."""
        if seam is not None:
            seam.write(self._label, self._confidence)

    def prediction(self) -> Prediction:
        """When all tiles were added and all seams written."""
        scores = None if self._scores is None else self._scores.mean()
        change = self._changed / self._walked if self._walked else None
        maps = None if self._maps is None else self._maps.whole()
        return Prediction(self._label, self._confidence, scores, change=change, maps=maps)


LARGEST_OVERLAP = 256
"""Pixels that neighbours share; half of it is what a pixel at a seam sees beyond it."""


@dataclass(frozen=True)
class Cuts:
    """One axis of an image, cut into tiles of one size, of which at most two cover a pixel.

    Attributes:
        starts: first pixel of each tile, ascending.
        size: of every tile, in pixels.
    """

    starts: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, length: int, longest: int) -> "Cuts":
        """As few tiles as go, each as small as goes with those.

        Args:
            length: of the axis, in pixels.
            longest: tile, >= 8.
        """
        if length <= longest:
            return cls((0,), length)
        overlap = min(LARGEST_OVERLAP, longest // 4)
        count = math.ceil((length - overlap) / (longest - overlap))
        size = math.ceil((length + (count - 1) * overlap) / count)
        return cls(tuple(i * (length - size) // (count - 1) for i in range(count)), size)

    def tile(self, i: int) -> slice:
        """Pixels of a tile."""
        return slice(self.starts[i], self.starts[i] + self.size)

    def core(self, i: int) -> slice:
        """Pixels that no other tile covers."""
        end = self.starts[i] + self.size
        first = self.starts[i - 1] + self.size if i else 0
        return slice(first, self.starts[i + 1] if i + 1 < len(self.starts) else end)

    def overlap(self, i: int) -> slice | None:
        """Pixels that tile i shares with tile i + 1; None: there is no such tile."""
        if not 0 <= i < len(self.starts) - 1:
            return None
        return slice(self.starts[i + 1], self.starts[i] + self.size)

    def window(self, i: int) -> NDArray[np.float32]:
        """(size,) what tile i counts at each of its pixels; all tiles of a pixel sum to 1."""
        window = np.ones(self.size, np.float32)
        if (before := self.overlap(i - 1)) is not None:
            rise = _rise(before)
            window[: len(rise)] = rise
        if (after := self.overlap(i)) is not None:
            rise = _rise(after)
            window[-len(rise) :] = 1 - rise
        return window


def _rise(overlap: slice) -> NDArray[np.float32]:
    """From 0 to 1, flat at both ends: what is wrong at the very edge of a tile hardly counts."""
    count = overlap.stop - overlap.start
    angle = np.pi / 2 * (np.arange(count) + 0.5) / count
    return np.asarray(np.sin(angle) ** 2, np.float32)
