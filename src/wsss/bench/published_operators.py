"""Baselines: walk, affinities and instances as the released codes compute them; the published CRF.

Written anew from their description: AffinityNet (Ahn and Kwak, CVPR 2018) and IRNet (Ahn, Cho and
Kwak, CVPR 2019). Kept as slow as they are; nothing but the benchmark uses them.
"""

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import MissingDependencyError
from ..runtime.refine.dense_crf import CrfSettings
from ..runtime.refine.geometry import Align, to_full_size
from ..runtime.refine.pairs import PairOffsets, is_empty, shifted


def dense_walk(scores: Tensor, affinity: Tensor, pairs: PairOffsets, steps: int) -> Tensor:
    """(n, h, w) scores times the N x N transition matrix, squared log2(steps) times.

    Args:
        affinity: (K, h, w), exponent applied.
        steps: a power of 2.
    """
    transition = dense_matrix(affinity, pairs)
    transition /= transition.sum(0, keepdim=True)
    for _ in range(round(math.log2(steps))):
        transition = transition @ transition
    return (scores.flatten(1) @ transition).view_as(scores)


def dense_matrix(affinity: Tensor, pairs: PairOffsets) -> Tensor:
    """(K, h, w) -> (N, N) with ones on the diagonal."""
    height, width = affinity.shape[1:]
    cells = torch.arange(height * width, device=affinity.device).view(height, width)
    matrix = torch.eye(height * width, dtype=affinity.dtype, device=affinity.device)
    for plane, offset in enumerate(pairs.offsets):
        region = pairs.from_cells(offset, (height, width), "full")
        if not is_empty(region):
            one, other = cells[region].flatten(), cells[shifted(region, offset)].flatten()
            values = affinity[plane, *region].flatten()
            matrix[one, other] = values
            matrix[other, one] = values
    return matrix


def indexed_feature_affinity(features: Tensor, pairs: PairOffsets, beta: float) -> Tensor:
    """(C, h, w) -> (N, N): features of all pairs gathered by lists of indices; dense matrix."""
    height, width = features.shape[1:]
    radius = pairs.radius
    cells = torch.arange(height * width).view(height, width)
    first = cells[: height - radius + 1, radius - 1 : width - radius + 1]
    flat = features.flatten(1)
    partners = torch.stack(
        [
            cells[
                dy : dy + first.shape[0], radius - 1 + dx : radius - 1 + dx + first.shape[1]
            ].flatten()
            for dy, dx in pairs.offsets
        ]
    )
    near = flat.index_select(1, first.flatten())[:, None]
    far = flat.index_select(1, partners.flatten()).view(len(flat), len(pairs), -1)
    values = torch.exp(-beta * (near - far).abs().mean(0)).flatten()
    rows = first.flatten().repeat(len(pairs))
    return _dense(rows, partners.flatten(), values, height * width)


def indexed_boundary_affinity(boundary: Tensor, pairs: PairOffsets, beta: float) -> Tensor:
    """(h, w) -> (N, N): boundaries of all paths gathered, their maxima, and the dense matrix."""
    height, width = boundary.shape
    radius = pairs.radius
    padded = torch.nn.functional.pad(boundary, (radius, radius, 0, radius), value=1.0)
    cells = torch.arange(padded.numel()).view(padded.shape)
    first = cells[:height, radius : radius + width]
    rows, columns, values = [], [], []
    for dy, dx in pairs.offsets:
        path = [
            (y, x)
            for y in range(dy + 1)
            for x in range(min(dx, 0), max(dx, 0) + 1)
            if abs(x * dy - y * dx) < math.hypot(dy, dx)
        ]
        indices = torch.stack([(first + y * padded.shape[1] + x).flatten() for y, x in path])
        greatest = padded.flatten()[indices].amax(0)
        values.append((1 - greatest) ** beta)
        rows.append(first.flatten())
        columns.append((first + dy * padded.shape[1] + dx).flatten())
    dense = _dense(torch.cat(rows), torch.cat(columns), torch.cat(values), padded.numel())
    inside = first.flatten()
    return dense[inside][:, inside]


def _dense(rows: Tensor, columns: Tensor, values: Tensor, side: int) -> Tensor:
    """Both directions of every pair, in a (side, side) matrix."""
    place = torch.stack([rows, columns])
    sparse = torch.sparse_coo_tensor(place, values, (side, side), check_invariants=False)
    dense = sparse.to_dense()
    return dense + dense.t()


def follow_displacement(displacement: NDArray[np.float32], steps: int) -> NDArray[np.int64]:
    """(2, h, w) field -> (2, h, w) centroids: every cell moved for all steps."""
    height, width = displacement.shape[1:]
    y, x = (grid.astype(np.float32) for grid in np.indices((height, width)))
    for _ in range(steps):
        top, bottom = np.floor(y).astype(np.int64), np.ceil(y).astype(np.int64)
        left, right = np.floor(x).astype(np.int64), np.ceil(x).astype(np.int64)
        down, across = y - top, x - left
        move_y, move_x = (
            plane[bottom, right] * down * across
            + plane[bottom, left] * down * (1 - across)
            + plane[top, right] * (1 - down) * across
            + plane[top, left] * (1 - down) * (1 - across)
            for plane in displacement
        )
        y = np.clip(y + move_y, 0, height - 1).astype(np.float32)
        x = np.clip(x + move_x, 0, width - 1).astype(np.float32)
    return np.stack([np.round(y), np.round(x)]).astype(np.int64)


def instance_masks(
    planes: Tensor, size: tuple[int, int], align: Align, threshold: float, min_area: float
) -> list[tuple[NDArray[np.bool_], float]]:
    """(P, h, w) walked planes -> mask and score of each instance, all planes at full size."""
    full = to_full_size(planes, size, align)
    full /= full.max()
    background = torch.full((1, *size), threshold)
    winners = torch.cat([background, full]).argmax(0).numpy()
    found = []
    for number, plane in enumerate(full.numpy(), start=1):
        won = (winners == number).view(np.uint8)
        count, segments = cv2.connectedComponents(won, connectivity=4)
        for segment in range(1, count):
            mask = segments == segment
            is_fragment = mask.sum() < min_area * mask.size
            found.append((mask, 0.0 if is_fragment else float((plane * mask).max())))
    return found


def package_crf(image: NDArray[np.uint8], unary: Tensor, settings: CrfSettings) -> Tensor:
    """`DenseCrf.refine` by the published package, from PyPI as pydensecrf2.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        from pydensecrf import densecrf
    except ModuleNotFoundError:
        raise MissingDependencyError(
            "pydensecrf2 is not installed: pip install 'wsss[oracle]'"
        ) from None
    height, width = image.shape[:2]
    crf = densecrf.DenseCRF2D(width, height, len(unary))  # it takes the width first
    crf.setUnaryEnergy(np.ascontiguousarray(unary.flatten(1).numpy()))
    crf.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=settings.bilateral_sxy,
        srgb=settings.bilateral_srgb,
        rgbim=np.ascontiguousarray(image),
        compat=settings.bilateral_compat,
    )
    return torch.from_numpy(np.array(crf.inference(settings.iterations))).view(unary.shape)
