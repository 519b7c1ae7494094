"""Instances of an image from its CAMs, boundary map and displacement field.

Source: IRNet (Ahn, Cho, Kwak, CVPR 2019), its released inference code. Beside it the two ways that
it is compared with: CAMs alone, and CAMs walked within boundaries.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from ...errors import ShapeError
from ..io.score_maps import ScoreMaps
from ..refine.boundary_affinity import boundary_affinities
from ..refine.geometry import Align, to_full_size
from ..refine.pseudo_labels import WalkSettings, scores_on_grid, walk_planes
from .displacement import cluster_cells, refine_centroids
from .instance_map import InstanceMap
from .segments import row_strips, segments_of
from .settings import InstanceSettings

_VALUES_AT_ONCE = 2**22
"""Values of planes that exist together, on the grid or at full size: 16 MiB in float32, or one
plane where it is larger."""


class RunningArgmax:
    """Running argmax of grid planes, brought to full size some at a time.

    Args:
        size: (height, width) of the image.
        threshold: background constant that scores have to exceed, in [0, 1].
        scale: score planes are divided by it; None for their greatest value at full size.
    """

    def __init__(
        self,
        size: tuple[int, int],
        align: Align,
        *,
        threshold: float,
        scale: float | None,
        device: torch.device,
    ) -> None:
        self._size, self._align, self._threshold = size, align, threshold
        self._scale = scale
        self._greatest = 0.0
        self._values = torch.zeros(size, device=device)
        self._winners = torch.zeros(size, dtype=torch.int32, device=device)
        self._num_planes = 0

    def add(self, planes: Tensor) -> None:
        """Let (n, h, w) float32 planes >= 0 take part; of equals the one that came first wins.

        A plane that exceeds the background nowhere on the grid is left out: interpolation never
        leaves the range of its values, and the scale can only grow.
        """
        if not len(planes):
            return
        heights = planes.amax((1, 2))
        tallest = int(heights.argmax())
        peak = float(self._enlarge(planes[tallest : tallest + 1]).amax())
        self._greatest = max(self._greatest, peak)
        candidates = (heights > self._floor()).nonzero()[:, 0]
        together = max(1, _VALUES_AT_ONCE // self._values.numel())
        for start in range(0, len(candidates), together):
            some = candidates[start : start + together]
            numbers = (some + (self._num_planes + 1)).to(torch.int32)
            self._compete(self._enlarge(planes[some]), numbers)
        self._num_planes += len(planes)

    def _compete(self, enlarged: Tensor, numbers: Tensor) -> None:
        """(n, H, W) against the winners so far; some rows at a time, for copies are made."""
        for rows in row_strips(self._size, _VALUES_AT_ONCE):
            values, place = enlarged[:, rows].max(0)
            is_better = values > self._values[rows]
            self._winners[rows] = torch.where(is_better, numbers[place], self._winners[rows])
            self._values[rows] = torch.where(is_better, values, self._values[rows])

    def result(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """(H, W): 0 background, p + 1 where plane p wins; and the winner's score, in [0, 1]."""
        self._greatest = float(self._values.amax())
        scale = self._scale or self._greatest or 1.0  # all planes may be zero
        scores = (self._values / scale).clamp_(max=1)
        winners = self._winners.where(self._values > self._floor(), 0)
        return winners.cpu().numpy(), scores.cpu().numpy()

    def _floor(self) -> float:
        return self._threshold * (self._scale or self._greatest)

    def _enlarge(self, planes: Tensor) -> Tensor:
        return to_full_size(planes, self._size, self._align)


def group_instances(
    maps: ScoreMaps,
    boundary: Tensor,
    displacement: Tensor,
    walk: WalkSettings,
    settings: InstanceSettings,
) -> InstanceMap:
    """Instances of one image: the CAM of every class is parted by centroid, then walks.

    Args:
        maps: normalised CAMs of the classes in the image, n of them, n may be 0.
        boundary: (1, h, w) floating in [0, 1], on the device that computes.
        displacement: (2, h, w) floating, finite, (dy, dx) in cells of the same grid.
        walk: the background is that of `settings` instead.

    Returns:
        Instances by class in the order of `maps`, then by cluster, then by their first pixel; none
        where no score exceeds the background.

    Raises:
        ShapeError, DataError: boundary or displacement as above do not hold.
    """
    return group_images([maps], [boundary], [displacement], walk, settings)[0]


def group_images(
    images: Sequence[ScoreMaps],
    boundaries: Sequence[Tensor],
    displacements: Sequence[Tensor],
    walk: WalkSettings,
    settings: InstanceSettings,
) -> list[InstanceMap]:
    """`group_instances` of every image; each result equals that of the image alone.

    The displacement fields, which may differ in size, are followed together; the rest goes image
    by image.
    """
    if not len(images) == len(boundaries) == len(displacements):
        raise ShapeError(
            f"{len(images)} images have {len(boundaries)} boundary maps and {len(displacements)} "
            "displacement fields: give one each"
        )
    for boundary, displacement in zip(boundaries, displacements, strict=True):
        _require_grid(boundary, displacement)
    if not images:
        return []
    sizes = [(field.shape[1], field.shape[2]) for field in displacements]
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    fields = torch.stack(
        [
            pad(field, (0, width - columns, 0, height - rows))
            for field, (rows, columns) in zip(displacements, sizes, strict=True)
        ]
    )
    centroids = refine_centroids(fields, steps=settings.steps, sizes=sizes).cpu().numpy()
    results = []
    for index, (rows, columns) in enumerate(sizes):
        clusters = cluster_cells(
            displacements[index].double().cpu().numpy(),
            centroids[index, :, :rows, :columns],
            radius=settings.centroid_radius,
        )
        parts = torch.from_numpy(clusters).to(boundaries[index].device)
        results.append(_walk_parts(images[index], boundaries[index], parts, walk, settings))
    return results


def boundary_instances(
    maps: ScoreMaps, boundary: Tensor, walk: WalkSettings, settings: InstanceSettings
) -> InstanceMap:
    """Connected segments of CAMs that walked within boundaries, without displacement.

    What `group_instances` gives where all cells have one centroid; arguments as there.
    """
    _require_boundary(boundary)
    one_part = torch.zeros(boundary.shape[1:], dtype=torch.int64, device=boundary.device)
    return _walk_parts(maps, boundary, one_part, walk, settings)


def cam_instances(maps: ScoreMaps, align: Align, settings: InstanceSettings) -> InstanceMap:
    """Connected segments of the label map that CAMs alone give, as `label_from_scores` does.

    Args:
        maps: normalised CAMs of the classes in the image.
        settings: the threshold is that of CAMs, which differs from that of walked scores.
    """
    strongest = RunningArgmax(
        maps.size, align, threshold=settings.threshold, scale=1.0, device=torch.device("cpu")
    )
    strongest.add(torch.from_numpy(maps.scores))
    return _split(strongest, maps.classes, settings)


def _walk_parts(
    maps: ScoreMaps, boundary: Tensor, parts: Tensor, walk: WalkSettings, settings: InstanceSettings
) -> InstanceMap:
    """Walk the CAMs apart for each part of the grid; parts (h, w) hold numbers from 0."""
    strongest = RunningArgmax(
        maps.size, walk.align, threshold=settings.threshold, scale=None, device=boundary.device
    )
    if not len(maps.classes):
        return _split(strongest, maps.classes, settings)
    grid = (boundary.shape[1], boundary.shape[2])
    scores = scores_on_grid(maps, grid, replace(walk, background="constant")).to(boundary.device)
    num_parts = int(parts.amax()) + 1
    # Planes class by class, for indices take more than scores; one without any score would stay
    # zero on the walk and win nothing.
    planes = torch.cat(
        [torch.unique(parts[plane != 0]) + k * num_parts for k, plane in enumerate(scores)]
    )
    affinity, damping = boundary_affinities(boundary[None], walk)
    together = max(1, _VALUES_AT_ONCE // parts.numel())
    for start in range(0, len(planes), together):
        some = planes[start : start + together]
        is_part = parts == (some % num_parts)[:, None, None]
        parted = scores[some // num_parts] * is_part
        strongest.add(walk_planes(parted, affinity, walk, damping))
    return _split(strongest, maps.classes[(planes // num_parts).cpu().numpy()], settings)


def _split(
    strongest: RunningArgmax, classes: NDArray[np.int64], settings: InstanceSettings
) -> InstanceMap:
    winners, scores = strongest.result()
    return segments_of(
        winners,
        scores,
        classes,
        min_area=settings.min_area,
        keep_fragments=settings.fragments == "keep",
    )


def _require_boundary(boundary: Tensor) -> None:
    if boundary.ndim != 3 or boundary.shape[0] != 1 or 0 in boundary.shape:
        raise ShapeError(
            f"`boundary` is {tuple(boundary.shape)}, expected (1, h, w) with h, w >= 1"
        )


def _require_grid(boundary: Tensor, displacement: Tensor) -> None:
    _require_boundary(boundary)
    expected = (2, *boundary.shape[1:])
    if tuple(displacement.shape) != expected:
        raise ShapeError(
            f"`displacement` is {tuple(displacement.shape)}, expected {expected} for a boundary "
            f"map of {tuple(boundary.shape)}"
        )
