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

from ....errors import DataError
from ...predictor import AnyOf, Prediction, Predictor, PredictorSpec, group_instances
from .blending import CoarseScores, Seam, Tile

if TYPE_CHECKING:
    from ...instances.maps import TiledMaps  # which imports torch

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
            from ...instances.maps import Span, TiledMaps

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
