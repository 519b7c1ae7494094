"""Gaussian filtering of scattered points on the permutohedral lattice.

Source: Adams, Baek, Davis, "Fast high-dimensional filtering using the permutohedral lattice"
(2010), in the float32 form that the published dense CRF uses. Splat, blur and slice are sparse
products; each runs as bags of weighted rows, which sum in a fixed order on every device.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ...errors import ConfigError, ShapeError

_BLOCK = 4
"""Points that the published code takes at a time."""
_BAG = 256
"""Most points that are summed in one go; a vertex of a flat region collects ten thousands."""
_MAX_COORDINATE = 2**15
"""Coordinates of the published code are 16-bit; float32 still places points well within this."""
_MAX_KEY = 2**62
"""Packed vertex coordinates stay below this."""


class Lattice:
    """The lattice around N points, and the filter over values given at these points.

    Every point lies in a simplex of d + 1 vertices. Vertices are known by one packed integer each,
    and ordered by it.

    Args:
        features: (N, d) float32, N >= 1, already divided by the standard deviation of each axis.

    Raises:
        ShapeError: features have no point or no axis.
        ConfigError: features spread so far that vertices cannot be numbered.
    """

    def __init__(self, features: Tensor) -> None:
        if features.ndim != 2 or 0 in features.shape:
            raise ShapeError(
                f"`features` are {tuple(features.shape)}, expected (N, d) with N, d >= 1"
            )
        self.num_points = count = len(features)
        simplices = _Simplices(_elevate(_fill_last_block(features.float())))
        packing = _Packing(simplices)
        keys = packing.vertex_keys(simplices)  # (d + 1, N), or N + 1 with the filling
        # One sort finds the vertices and brings the entries of each together.
        sorted_keys, order = torch.sort(keys.flatten(), stable=True)
        is_first = torch.ones_like(sorted_keys, dtype=torch.bool)
        torch.ne(sorted_keys[1:], sorted_keys[:-1], out=is_first[1:])
        vertex_keys = sorted_keys[is_first]
        self.num_vertices = len(vertex_keys)
        self._neighbours, self._blur_weights = packing.neighbours(vertex_keys)

        sorted_vertices = is_first.cumsum(0, dtype=torch.int32) - 1
        vertices = torch.empty_like(sorted_vertices)
        vertices[order] = sorted_vertices
        weights = simplices.barycentric()
        # 1 + 2**-d is the published constant that makes up for the gain of the blur.
        gain = 1 + 2.0 ** -features.shape[1]
        self._slice_vertices = vertices.view(keys.shape)[:, :count].t().contiguous()  # (N, d + 1)
        self._slice_weights = weights[:, :count].t().contiguous() / gain

        points = (order % keys.shape[1]).int()
        is_real = points < count
        self._splat_points = points[is_real]
        self._splat_weights = weights.flatten()[order][is_real]
        self._bags, self._vertex_bags, self._bag_order = _split_into_bags(
            sorted_vertices[is_real], self.num_vertices
        )

    def normalise(self) -> None:
        """Make the filter K into D^-1/2 K D^-1/2, where D holds the row sums of K."""
        sums = self.filter(self._slice_weights.new_ones(self.num_points, 1))[:, 0]
        scale = (sums.double() + 1e-20).rsqrt().float()
        self._splat_weights *= scale[self._splat_points]
        self._slice_weights *= scale[:, None]

    def filter(self, values: Tensor) -> Tensor:
        """(N, n) float32 values of the points -> (N, n), each a weighted sum over near points."""
        parts = embedding_bag(
            self._splat_points,
            values,
            self._bags,
            mode="sum",
            per_sample_weights=self._splat_weights,
        )
        at_vertices = embedding_bag(self._bag_order, parts, self._vertex_bags, mode="sum")
        for neighbours, weights in zip(self._neighbours, self._blur_weights, strict=True):
            at_vertices = embedding_bag(
                neighbours, at_vertices, mode="sum", per_sample_weights=weights
            )
        return embedding_bag(
            self._slice_vertices, at_vertices, mode="sum", per_sample_weights=self._slice_weights
        )


class _Simplices:
    """The simplex around each point; all members are (d + 1, N), one plane an axis."""

    def __init__(self, elevated: Tensor) -> None:
        # Written so that NaN fails too.
        if not bool(elevated.abs().amax() < _MAX_COORDINATE):
            raise _too_far(f"{float(elevated.abs().amax()):g}")
        size = len(elevated)
        self._inverse_size = float(np.float32(1) / np.float32(size))
        # The vertex of remainder 0 that is nearest, in units of d + 1; then back to the plane.
        rounded = (elevated * self._inverse_size).round_()
        excess = rounded.sum(0).to(torch.int8)
        rank = _ranks(elevated - rounded * size) + excess
        wrap = (rank < 0).to(torch.int8) - (rank >= size).to(torch.int8)
        self.rank = (rank + wrap * size).long()
        """Place of each axis when the offsets from the vertex are sorted, greatest first."""
        self.origin = rounded + wrap
        """Vertex of remainder 0 divided by d + 1: whole numbers."""
        self._offset = elevated - self.origin * size

    def barycentric(self) -> Tensor:
        """(d + 1, N) weights of the vertices of remainder 0 to d; they sum to 1."""
        share = self._offset * self._inverse_size
        by_rank = torch.empty_like(share).scatter_(0, self.rank, share).flip(0)
        weights = by_rank.clone()
        weights[1:] -= by_rank[:-1]
        weights[0] += 1 - by_rank[-1]
        return weights


class _Packing:
    """Vertex coordinates as one integer: mixed radix over d axes, the remainder as last digit.

    The last axis is left out, because the coordinates of a vertex sum to 0.
    """

    def __init__(self, simplices: _Simplices) -> None:
        origin = simplices.origin[:-1]
        self._size = len(origin) + 1
        # Vertices reach one below the origin, and neighbours one further on both sides.
        self._low = origin.amin(1) - 2
        spans = (origin.amax(1) - self._low + 2).long().tolist()
        strides = [self._size]
        for span in spans:
            strides.append(strides[-1] * span)
        if strides[-1] > _MAX_KEY:
            raise _too_far(" x ".join(map(str, spans)))
        # 32-bit keys sort about four times as fast as 64-bit ones.
        self._dtype = torch.int32 if strides[-1] < 2**31 else torch.int64
        self._strides = [*strides[:-1], 0]

    def vertex_keys(self, simplices: _Simplices) -> Tensor:
        """(d + 1, N) keys of the vertices of each simplex, by remainder."""
        size = self._size
        coordinates = (simplices.origin[:-1] - self._low[:, None]).to(self._dtype)
        strides = torch.tensor(self._strides, dtype=self._dtype, device=coordinates.device)
        by_rank = torch.empty_like(simplices.rank, dtype=self._dtype)
        by_rank.scatter_(0, simplices.rank, strides[:, None].expand(simplices.rank.shape))
        keys = torch.empty_like(by_rank)
        keys[0] = sum(
            plane * stride for plane, stride in zip(coordinates, self._strides, strict=False)
        )
        # From remainder r - 1 to r all coordinates gain 1, and the one of rank d + 1 - r falls
        # by d + 1.
        for remainder in range(1, size):
            keys[remainder] = keys[remainder - 1] + 1 - by_rank[size - remainder]
        return keys

    def neighbours(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """(d + 1, M, 3) int32 vertices next to each along every axis and itself, and weights.

        A neighbour outside the lattice weighs nothing.
        """
        size, count = self._size, len(keys)
        remainder = keys % size
        everything = sum(self._strides)
        # One cell along an axis: -1 everywhere but there, where it is + d; and the reverse.
        down = torch.where(remainder == 0, size - 1 - everything, -1).to(self._dtype)
        up = torch.where(remainder == size - 1, everything - size + 1, 1).to(self._dtype)
        strides = keys.new_tensor(self._strides)[:, None]
        wanted = torch.stack([keys + down + strides, keys + up - strides], dim=-1)
        found = torch.searchsorted(keys, wanted, out_int32=True).clamp_(max=count - 1)
        exists = keys[found] == wanted
        own = torch.arange(count, dtype=torch.int32, device=keys.device).expand(size, count)
        near = torch.where(exists, found, own[..., None])
        vertices = torch.stack([near[..., 0], own, near[..., 1]], dim=-1)
        half = exists * 0.5
        weights = torch.stack([half[..., 0], torch.ones_like(half[..., 0]), half[..., 1]], dim=-1)
        return vertices, weights


def _too_far(extent: str) -> ConfigError:
    return ConfigError(
        f"points span {extent} cells of the filter's lattice, more than can be numbered:"
        " take a wider kernel or a smaller image"
    )


def _fill_last_block(features: Tensor) -> Tensor:
    # The published code fills its last block of four with points at 0, whose vertices stay in
    # the lattice and pass values on although nothing is splatted there.
    if len(features) % _BLOCK == 0:
        return features
    return torch.cat([features, features.new_zeros(1, features.shape[1])])


def _elevate(features: Tensor) -> Tensor:
    """(N, d) -> (d + 1, N) on the plane of sum 0, in float32 and in the published order."""
    num_axes = features.shape[1]
    deviation = np.float32(math.sqrt(2 / 3) * (num_axes + 1))
    total = features.new_zeros(len(features))
    elevated = features.new_empty(num_axes + 1, len(features))
    for axis in range(num_axes, 0, -1):
        scale = np.float32(1 / math.sqrt((axis + 1) * axis) * float(deviation))
        scaled = features[:, axis - 1] * float(scale)
        torch.sub(total, scaled * axis, out=elevated[axis])
        total = total + scaled
    elevated[0] = total
    return elevated


def _ranks(offsets: Tensor) -> Tensor:
    """(d + 1, N) -> int8 number of greater offsets at each point; equals count as falling."""
    ranks = torch.zeros_like(offsets, dtype=torch.int8)
    for first in range(len(offsets)):
        for second in range(first + 1, len(offsets)):
            less = offsets[first] < offsets[second]
            ranks[first] += less
            ranks[second] += ~less
    return ranks


def _split_into_bags(sorted_vertices: Tensor, num_vertices: int) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets of bags of at most `_BAG` entries each, first bag of each vertex, all bag numbers."""
    device = sorted_vertices.device
    bounds = torch.searchsorted(
        sorted_vertices,
        torch.arange(num_vertices + 1, dtype=sorted_vertices.dtype, device=device),
    )
    bags_each = (bounds.diff() + _BAG - 1) // _BAG
    ends = bags_each.cumsum(0)
    first_bags = ends - bags_each
    numbers = torch.arange(int(ends[-1]), device=device)
    owner = torch.repeat_interleave(bags_each)
    offsets = bounds[owner] + (numbers - first_bags[owner]) * _BAG
    return offsets.int(), first_bags.int(), numbers.int()
