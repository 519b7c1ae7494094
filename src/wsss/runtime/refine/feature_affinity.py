"""Likeness of nearby grid cells from their features, and what a label map says about the pairs.

Affinities live in K = `len(PairOffsets(radius))` planes: plane k at cell p holds the pair
(p, p + offsets[k]). Source: AffinityNet (Ahn, Kwak, CVPR 2018); the distance is the mean over
channels, as in its published code (the paper prints the sum).
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import ConfigError, DataError, ShapeError
from ..io.palette import IGNORE_INDEX
from .pairs import Borders, PairKind, PairOffsets, Region, is_empty, shifted

__all__ = [
    "Borders",
    "PairKind",
    "PairOffsets",
    "affinity_from_cosine",
    "affinity_from_features",
    "pair_distances",
    "pair_labels",
]

_NATIVE_VALUES = 64 * 1024
"""Feature values from which the compiled form is worth the second that loading it takes once."""
_CPU_BLOCK_VALUES = 160 * 1024
"""Feature values of a block of rows on a CPU: block, partners and scratch stay in the L2 cache."""


@torch.no_grad()
def affinity_from_features(
    features: Tensor,
    *,
    radius: int = 5,
    beta: float = 1.0,
    borders: Borders = "full",
) -> Tensor:
    """Compute the affinity of neighbouring grid cells from features, for `propagate`.

    The affinity of cells i and j is exp(-beta * mean over channels of |f_i - f_j|). No gradient
    flows through it. Source: AffinityNet (Ahn and Kwak, CVPR 2018).

    Args:
        features: (B, C, h, w) floating, finite.
        radius: two cells form a pair if they are less than this many grid cells apart, >= 2.
        beta: exponent > 0; a larger one keeps the random walk closer to its start.
        borders: `full` takes every pair inside the image, `reference` follows the published code,
            which has no pairs along the margin.

    Returns:
        (B, K, h, w) float32 (float64 for float64 features) in [0, 1], one plane for each of the K
        offsets of a pair, exactly 0 where there is no pair; K is 34 for radius 5. The images of a
        batch do not influence each other.

    Raises:
        ShapeError: `features` is not (B, C, h, w) with C, h, w >= 1.
        DataError: `features` is not floating point, or holds NaN or infinity.
        ConfigError: `radius`, `beta` or `borders` is out of its range.
    """
    _require_grid(features)
    if not (math.isfinite(beta) and beta > 0):
        raise ConfigError(f"`beta` is {beta}, must be a finite number above 0")
    if not bool(torch.isfinite(features).all()):
        raise DataError("`features` hold NaN or infinity, expected finite values")
    cells, pairs = _cells_first(features), PairOffsets(radius)
    compute = _native_distances(cells) or _distances
    return compute(cells, pairs, borders).mul_(-beta).exp_()


@torch.no_grad()
def affinity_from_cosine(
    features: Tensor, *, radius: int = 5, beta: float = 1.0, borders: Borders = "full"
) -> Tensor:
    """Affinity of every pair as the cosine of its features: max(0, cos(f_i, f_j)) ** beta.

    Args, result and errors: those of `affinity_from_features`. A cell whose features are all 0 is
    like no other.
    """
    _require_grid(features)
    if not (math.isfinite(beta) and beta > 0):
        raise ConfigError(f"`beta` is {beta}, must be a finite number above 0")
    if not bool(torch.isfinite(features).all()):
        raise DataError("`features` hold NaN or infinity, expected finite values")
    cells = torch.nn.functional.normalize(_cells_first(features), dim=-1)
    pairs = PairOffsets(radius)
    batch, height, width, _ = cells.shape
    result = cells.new_zeros((batch, len(pairs), height, width))
    for plane, first, second, region, scratch in _blocks(cells, pairs, borders):
        result[region[0], plane, *region[1:]] = torch.mul(first, second, out=scratch).sum(-1)
    return result.clamp_(0, 1).pow_(beta)


def _native_distances(cells: Tensor) -> Callable[[Tensor, PairOffsets, Borders], Tensor] | None:
    """The compiled form where it can be used and the work is worth loading it."""
    if cells.device.type != "cpu" or cells.dtype != torch.float32 or cells.numel() < _NATIVE_VALUES:
        return None
    return _load_native_distances()


@lru_cache(maxsize=1)
def _load_native_distances() -> Callable[[Tensor, PairOffsets, Borders], Tensor] | None:
    """None where numba is not installed or does not work; the walk says the reason."""
    try:
        from .fast.affinity_numba import feature_distances
    except (ImportError, RuntimeError):
        return None
    return feature_distances


def pair_distances(features: Tensor, *, radius: int = 5, borders: Borders = "reference") -> Tensor:
    """Mean over channels of |f_i - f_j| for every pair, differentiable.

    Memory beyond the result is O(features): the backward pass computes the signs of the differences
    again instead of keeping K copies of the features.

    Args:
        features: (B, C, h, w) floating; half precision is computed in float32.
        radius: pairs lie strictly nearer than this, in grid cells.
        borders: which pairs exist, see `Borders`.

    Returns:
        (B, K, h, w), infinite where there is no pair, so that `exp(-distance)` is 0 there.

    Raises:
        ShapeError, DataError, ConfigError: features or settings as above do not hold.
    """
    _require_grid(features)
    distances: Tensor = _PairDistances.apply(features, PairOffsets(radius), borders)  # type: ignore[no-untyped-call]
    return distances


def pair_labels(label_map: Tensor, *, radius: int = 5, borders: Borders = "reference") -> Tensor:
    """Kind of every pair, from labels on the same grid as the features.

    Args:
        label_map: (B, h, w) integer; 0 background, 255 ignore, only equality of others counts.
        radius: pairs lie strictly nearer than this, in grid cells.
        borders: which pairs exist, see `Borders`.

    Returns:
        (B, K, h, w) int8 of `PairKind`.

    Raises:
        ShapeError, DataError, ConfigError: labels or settings as above do not hold.
    """
    if label_map.ndim != 3:
        raise ShapeError(f"`label_map` is {tuple(label_map.shape)}, expected (B, h, w)")
    if label_map.is_floating_point() or label_map.dtype == torch.bool:
        raise DataError(f"`label_map` is {label_map.dtype}, expected integer labels")
    pairs = PairOffsets(radius)
    batch, height, width = label_map.shape
    kinds = torch.full(
        (batch, len(pairs), height, width),
        int(PairKind.NONE),
        dtype=torch.int8,
        device=label_map.device,
    )
    # Arithmetic on kinds, because masks take four times as long. FOREGROUND is 1: unlike labels
    # make it 1 more, background in both cells 1 less; a cell to be ignored raises it to NONE.
    background = (label_map == 0).to(torch.int8)
    ignored = (label_map == IGNORE_INDEX).to(torch.int8).mul_(int(PairKind.NONE))
    for plane, offset in enumerate(pairs.offsets):
        here = pairs.from_cells(offset, (height, width), borders)
        if is_empty(here):
            continue
        there = shifted(here, offset)
        first = label_map[:, *here]
        own = torch.empty(first.shape, dtype=torch.int8, device=label_map.device)
        torch.ne(first, label_map[:, *there], out=own)
        own.add_(int(PairKind.FOREGROUND)).sub_(background[:, *here] & background[:, *there])
        nothing = ignored[:, *here] | ignored[:, *there]
        torch.maximum(own, nothing, out=kinds[:, plane, *here])
    return kinds


class _PairDistances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, pairs: PairOffsets, borders: Borders) -> Tensor:
        ctx.save_for_backward(features)
        ctx.pairs, ctx.borders = pairs, borders
        return _distances(_cells_first(features), pairs, borders)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (features,) = ctx.saved_tensors
        cells = _cells_first(features)
        result = _distances_backward(cells, gradient, ctx.pairs, ctx.borders)
        return result.permute(0, 3, 1, 2).to(features.dtype), None, None


def _distances(cells: Tensor, pairs: PairOffsets, borders: Borders) -> Tensor:
    """(B, h, w, C) -> (B, K, h, w)."""
    batch, height, width, channels = cells.shape
    distances = cells.new_full((batch, len(pairs), height, width), math.inf)
    for plane, first, second, region, scratch in _blocks(cells, pairs, borders):
        difference = torch.sub(first, second, out=scratch)
        sums = torch.linalg.vector_norm(difference, ord=1, dim=-1)
        distances[region[0], plane, *region[1:]] = sums.div_(channels)
    return distances


def _distances_backward(
    cells: Tensor, gradient: Tensor, pairs: PairOffsets, borders: Borders
) -> Tensor:
    """(B, h, w, C) and (B, K, h, w) -> gradient of the cells, (B, h, w, C)."""
    result = torch.zeros_like(cells)
    gradient = gradient.to(cells.dtype) / cells.shape[-1]
    for plane, first, second, region, scratch in _blocks(cells, pairs, borders):
        images, rows, columns = region
        weight = gradient[images, plane, rows, columns].unsqueeze(-1)
        pull = torch.sub(first, second, out=scratch).sign_().mul_(weight)
        result[images, rows, columns] += pull
        result[images, *shifted((rows, columns), pairs.offsets[plane])] -= pull
    return result


def _blocks(
    cells: Tensor, pairs: PairOffsets, borders: Borders
) -> Iterator[tuple[int, Tensor, Tensor, tuple[slice, slice, slice], Tensor]]:
    """Plane, from-features, to-features, from-cells (images, rows, columns), scratch for them.

    On a CPU a block is a few rows of one image, which stay in the cache for all offsets; elsewhere
    the whole batch, because there the number of calls counts.
    """
    batch, height, width, channels = cells.shape
    on_cpu = cells.device.type == "cpu"
    num_images = 1 if on_cpu else batch
    num_rows = min(height, max(1, _CPU_BLOCK_VALUES // (width * channels))) if on_cpu else height
    scratch = cells.new_empty((num_images, num_rows, width, channels))
    regions = [pairs.from_cells(offset, (height, width), borders) for offset in pairs.offsets]
    for image in range(0, batch, num_images):
        images = slice(image, image + num_images)
        for top in range(0, height, num_rows):
            for plane, (all_rows, columns) in enumerate(regions):
                rows = slice(max(top, all_rows.start), min(top + num_rows, all_rows.stop))
                region: Region = (rows, columns)
                if is_empty(region):
                    continue
                first = cells[images, *region]
                second = cells[images, *shifted(region, pairs.offsets[plane])]
                _, used_rows, used_columns, _ = first.shape
                used = scratch[:, :used_rows, :used_columns]
                yield plane, first, second, (images, rows, columns), used


def _cells_first(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w, C), contiguous, at least float32."""
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    return features.detach().to(dtype).permute(0, 2, 3, 1).contiguous()


def _require_grid(features: Tensor) -> None:
    if features.ndim != 4 or 0 in features.shape[1:]:
        raise ShapeError(
            f"`features` are {tuple(features.shape)}, expected (B, C, h, w) with C, h, w >= 1"
        )
    if not features.is_floating_point():
        raise DataError(f"`features` are {features.dtype}, expected floating point")
