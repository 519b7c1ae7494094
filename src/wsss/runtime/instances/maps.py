"""What the instances of an image are made from, before they are grouped: one image, or tiles of it.

Tiles are put together here, on the grid of the walk, and not their instances: an object across many
tiles is found as one, because its cells lead to one centroid and its scores walk across the seams.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..io.score_maps import ScoreMaps
from ..refine.boundary_affinity import STRIDE
from ..refine.geometry import grid_size
from ..refine.grid_cells import cell_centres, cells_at
from ..refine.pseudo_labels import WalkSettings, scores_on_grid
from .grouping import group_images
from .instance_map import InstanceMap
from .settings import InstanceSettings

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class InstanceMaps:
    """What `group_instances` takes of one image; see there."""

    cams: ScoreMaps
    boundary: Tensor
    displacement: Tensor
    walk: WalkSettings
    settings: InstanceSettings


def group_maps(images: Sequence[InstanceMaps]) -> list[InstanceMap]:
    """Instances of images of one model; each result equals that of the image alone.

    Raises:
        ShapeError, DataError: see `group_images`.
    """
    if not images:
        return []
    return group_images(
        [image.cams for image in images],
        [image.boundary for image in images],
        [image.displacement for image in images],
        images[0].walk,
        images[0].settings,
    )


@dataclass(frozen=True)
class Span:
    """A tile on one axis of its image.

    Attributes:
        pixels: that it covers.
        window: (pixels,) what it counts at each of them; those of all tiles sum to 1.
    """

    pixels: slice
    window: Floats


class TiledMaps:
    """Maps of the tiles of an image, blended to those of the image.

    In memory: (classes found + 3) planes of the grid, a float32 for each 4 x 4 pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        """
        Args:
            size: (height, width) of the image.
        """
        self._size = size
        self._latest: InstanceMaps | None = None
        self._planes: dict[str | int, Floats] = {}

    def add(self, rows: Span, columns: Span, tile: InstanceMaps) -> None:
        """A tile: its maps count by its windows; a class it has not found is nowhere in it.

        Vectors of displacement are taken as they are: cells of tiles that were cut differ by less
        than a hundredth from those of the image.
        """
        walk, self._latest = replace(tile.walk, background="constant"), tile
        grid = (tile.boundary.shape[1], tile.boundary.shape[2])
        height, width = grid_size(self._size, STRIDE, walk.align)
        y = _Cells.of(rows, height, self._size[0], grid[0], walk.align)
        x = _Cells.of(columns, width, self._size[1], grid[1], walk.align)
        scores = scores_on_grid(tile.cams, grid, walk).numpy()
        maps: dict[str | int, Floats] = dict(zip(tile.cams.classes.tolist(), scores, strict=True))
        maps["boundary"] = tile.boundary[0].float().cpu().numpy()
        maps["down"], maps["right"] = tile.displacement.float().cpu().numpy()
        for name, plane in maps.items():
            whole = self._planes.setdefault(name, np.zeros((height, width), np.float32))
            whole[y.cells, x.cells] += x.taken(y.taken(plane, 0), 1)

    def whole(self) -> InstanceMaps:
        """When all tiles were added, of which there is at least one; leaves nothing behind."""
        assert self._latest is not None
        latest, planes = self._latest, self._planes
        device = latest.boundary.device
        boundary = planes["boundary"].clip(0, 1)[None]  # rounding of weights may pass 1
        displacement = np.stack([planes["down"], planes["right"]])
        classes = sorted(name for name in planes if isinstance(name, int))
        scores = np.zeros((len(classes), *boundary.shape[1:]), np.float32)
        for plane, index in zip(scores, classes, strict=True):
            plane[:] = planes.pop(index)  # no class is in memory twice
        return InstanceMaps(
            ScoreMaps(np.array(classes, np.int64), scores, self._size),
            torch.from_numpy(boundary).to(device),
            torch.from_numpy(displacement).to(device),
            replace(latest.walk, maps_on_grid=True),
            latest.settings,
        )


@dataclass(frozen=True)
class _Cells:
    """Cells of the image's grid in a tile, on one axis.

    Attributes:
        cells: of the image.
        low, share: cells of the tile before each of them, and how far it lies towards the next.
        weights: what the tile counts in each.
    """

    cells: slice
    low: NDArray[np.intp]
    share: Floats
    weights: Floats

    @classmethod
    def of(cls, span: Span, count: int, length: int, tile_count: int, align: str) -> "_Cells":
        centres = cell_centres(count, length, align)
        # The last centre may lie beyond the image, where its grid does: then its tile and weight
        # are those of the last pixel, but its place in the tile is its own.
        pixels = centres.clip(max=length - 1).astype(np.intp)
        first, end = np.searchsorted(pixels, [span.pixels.start, span.pixels.stop])
        start = span.pixels.start
        places = cells_at(centres[first:end] - start, tile_count, len(span.window), align)
        low = places.astype(np.intp)
        share = (places - low).astype(np.float32)
        return cls(slice(first, end), low, share, span.window[pixels[first:end] - start])

    def taken(self, plane: Floats, axis: int) -> Floats:
        """The tile's values at these cells, linear between its own, times the weights."""
        high = np.minimum(self.low + 1, plane.shape[axis] - 1)
        shape = (-1, 1) if axis == 0 else (1, -1)
        share, weights = self.share.reshape(shape), self.weights.reshape(shape)
        between = plane.take(self.low, axis) * (1 - share) + plane.take(high, axis) * share
        return np.asarray(between * weights, np.float32)
