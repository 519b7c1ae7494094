"""Masks from COCO annotations: polygons and run-length codes to pixels.

A pixel belongs to a polygon where its centre does (even-odd rule); parts of one object add up.
Source: format and code of the COCO API's masks (Lin et al., ECCV 2014), written anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...runtime.instances.instance_map import MAX_INSTANCES
from ...runtime.io.image_io import DEFAULT_MAX_PIXELS
from ...runtime.io.palette import IGNORE_INDEX
from .image_set import InstanceTruth

_FARTHEST = 1e9  # beyond, slopes overflow; false for what is no number, too


@dataclass(frozen=True)
class Region:
    """The segmentation of one annotation.

    Attributes:
        label: value in the mask; 255 for a crowd, whose single objects are not told apart.
        shape: list of polygons [x0, y0, x1, y1, ...], or a run-length code {"counts", "size"}.
    """

    label: int
    shape: object


@dataclass(frozen=True)
class CocoMask:
    """The mask of one image: crowds first, then objects from the largest to the smallest.

    Attributes:
        where: what errors call it.
        digest: of the annotation file.
    """

    where: str
    height: int
    width: int
    regions: tuple[Region, ...]
    digest: str

    def load(self) -> NDArray[np.uint8]:
        """(H, W) uint8; see `MaskSource.load`."""
        drawn = self.drawn()  # which refuses sizes that no image has
        mask = np.zeros(self.height * self.width, np.uint8)
        for region, pixels in drawn:
            mask[pixels] = region.label
        return mask.reshape(self.height, self.width)

    def drawn(self) -> list[tuple[Region, NDArray[np.int64]]]:
        """The regions in the order of drawing, each with its pixels as flat indices.

        Raises:
            DataError: see `MaskSource.load`.
        """
        if not 0 < self.height * self.width <= DEFAULT_MAX_PIXELS or self.height < 0:
            raise DataError(
                f"{self.where} is said to be {self.height} x {self.width}, expected at most "
                f"{DEFAULT_MAX_PIXELS} pixels"
            )
        drawn = []
        for region in self.regions:
            try:
                inside = rasterise(region.shape, self.height, self.width)
            except DataError as error:
                raise DataError(f"{self.where}: {error}") from None
            drawn.append((region, np.flatnonzero(inside)))
        drawn.sort(key=lambda item: (item[0].label != IGNORE_INDEX, -item[1].size))
        return drawn

    def fingerprint(self) -> str:
        """See `MaskSource.fingerprint`."""
        return self.digest


@dataclass(frozen=True)
class CocoInstances:
    """The annotations of one image, drawn as its mask is: smaller ones lie on larger ones.

    Crowds are void; an annotation that others hide is none; one of a class outside of the list
    hides others and is background.
    """

    mask: CocoMask

    def load(self) -> InstanceTruth:
        """See `InstanceSource.load`."""
        drawn = self.mask.drawn()
        if len(drawn) > MAX_INSTANCES:
            raise DataError(
                f"{self.mask.where} has {len(drawn)} annotations, expected at most {MAX_INSTANCES}"
            )
        numbers = np.zeros(self.mask.height * self.mask.width, np.uint16)
        for number, (_, pixels) in enumerate(drawn, 1):
            numbers[pixels] = number
        labels = np.array([0, *(region.label for region, _ in drawn)])
        seen = np.bincount(numbers, minlength=len(labels)) > 0
        shown = np.flatnonzero(seen & (labels != 0) & (labels != IGNORE_INDEX))
        places = np.zeros(len(labels), np.uint16)
        places[shown] = np.arange(1, len(shown) + 1)
        ids, void = places[numbers], labels[numbers] == IGNORE_INDEX
        size = self.mask.height, self.mask.width
        return InstanceTruth(ids.reshape(size), labels[shown] - 1, void.reshape(size))

    def fingerprint(self) -> str:
        """See `InstanceSource.fingerprint`."""
        return self.mask.digest


def rasterise(shape: object, height: int, width: int) -> NDArray[np.bool_]:
    """Pixels of a COCO `segmentation`.

    Returns:
        (H, W) bool.

    Raises:
        DataError: neither polygons nor a run-length code of this size.
    """
    if isinstance(shape, dict):
        return decode_runs(shape, height, width)
    if not isinstance(shape, list):
        raise DataError("a segmentation is neither a list of polygons nor a run-length code")
    inside = np.zeros((height, width), bool)
    for polygon in shape:
        inside |= fill_polygon(polygon, height, width)
    return inside


def fill_polygon(polygon: object, height: int, width: int) -> NDArray[np.bool_]:
    """Pixels whose centre (column + 0.5, row + 0.5) lies inside a polygon, by the even-odd rule.

    Args:
        polygon: [x0, y0, x1, y1, ...] in pixels, at least three corners; may leave the image.

    Raises:
        DataError: not such a list of finite numbers.
    """
    corners = _corners(polygon)
    x0, y0 = corners.T
    x1, y1 = np.roll(corners, -1, 0).T
    # Rows whose centre line an edge crosses; half-open, so that a shared corner counts once.
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
    stop = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
    num_rows = stop - first
    edge = np.repeat(np.arange(len(corners)), num_rows)  # one entry per crossing
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(num_rows) - num_rows, num_rows)
    slope = (x1 - x0)[edge] / (y1 - y0)[edge]
    x = x0[edge] + (row + 0.5 - y0[edge]) * slope
    column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    crossings = np.bincount(row * (width + 1) + column, minlength=height * (width + 1))
    parity = np.cumsum(crossings.reshape(height, width + 1), axis=1) % 2
    inside: NDArray[np.bool_] = parity[:, :width] == 1
    return inside


def decode_runs(code: dict[object, object], height: int, width: int) -> NDArray[np.bool_]:
    """Pixels of a run-length code: lengths of runs of 0 and 1 in turn, down the columns.

    Args:
        code: `counts` is a list of lengths, or the COCO API's text of them; `size` is [H, W].

    Raises:
        DataError: another size, or lengths that do not add up to it.
    """
    counts, size = code.get("counts"), code.get("size")
    if size != [height, width]:
        raise DataError(f"a run-length code has the size {size}, its image [{height}, {width}]")
    runs = _decompress(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise DataError("a run-length code has no list of lengths")
    if sum(runs) != height * width:
        raise DataError(f"a run-length code covers {sum(runs)} pixels, expected {height} x {width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _decompress(text: str) -> list[int]:
    """Lengths out of COCO's text: 6 bits a character from '0' on, 5 of them data, sign extended;
    from the fourth on, a length is the difference to the one two before."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise DataError("a run-length code holds text that is not one of COCO")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise DataError("a run-length code is cut short")
    return runs


def _corners(polygon: object) -> NDArray[np.float64]:
    """(N, 2) float64 of (x, y)."""
    if not isinstance(polygon, Sequence) or len(polygon) < 6 or len(polygon) % 2:
        raise DataError("a polygon is not a list of at least three pairs of numbers")
    if not all(type(value) in (int, float) and abs(value) < _FARTHEST for value in polygon):
        raise DataError("a polygon holds something that is not a number of pixels")
    return np.asarray(polygon, np.float64).reshape(-1, 2)
