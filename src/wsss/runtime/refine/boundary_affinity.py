"""Likeness of nearby grid cells from a boundary map: 1 - the greatest boundary on the path between.

Planes as in `pairs`. Source: IRNet (Ahn, Cho, Kwak, CVPR 2019) and its published code, which
gathers every cell of every path. Here a path is a union of shorter paths, so that running maxima
are shared between the offsets and nothing is gathered.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import ConfigError, DataError, ShapeError
from .pairs import Borders, PairOffsets, is_empty
from .pseudo_labels import WalkSettings

Cell = tuple[int, int]  # (dy, dx) from the from-cell of a pair
Cells = frozenset[Cell]
STRIDE = 4
"""Pixels per cell of the grid of boundaries, on every backbone."""
SINGLE_CELL = -1
"""Plane of a part that is one cell: the boundary map itself."""


class PathPart(NamedTuple):
    """The path of offset `plane`, or a single cell, moved by `shift`."""

    plane: int
    shift: Cell


@torch.no_grad()
def affinity_from_boundary(
    boundary: Tensor, *, radius: int = 5, beta: float = 1.0, borders: Borders = "full"
) -> Tensor:
    """Compute the affinity of neighbouring grid cells from a boundary map, for `propagate`.

    The affinity of two cells is (1 - greatest boundary on the straight path between them) ** beta.
    No gradient flows through it. Source: IRNet (Ahn, Cho and Kwak, CVPR 2019).

    Args:
        boundary: (B, 1, h, w) floating, probability in [0, 1] that a cell is on a class boundary.
        radius: two cells form a pair if they are less than this many grid cells apart, >= 2.
        beta: exponent > 0; a larger one keeps the random walk closer to its start.
        borders: `full` takes every pair inside the image, `reference` follows the published code,
            which has no pairs along the margin.

    Returns:
        (B, K, h, w) float32 (float64 for float64 boundaries) in [0, 1], one plane for each of the K
        offsets of a pair, exactly 0 where there is no pair; K is 34 for radius 5. The images of a
        batch do not influence each other.

    Raises:
        ShapeError: `boundary` is not (B, 1, h, w) with h, w >= 1.
        DataError: `boundary` is not floating point, or has values outside [0, 1].
        ConfigError: `radius`, `beta` or `borders` is out of its range.
    """
    pairs = PairOffsets(radius)
    _require_boundary(boundary)
    if not (math.isfinite(beta) and beta > 0):
        raise ConfigError(f"`beta` is {beta}, must be a finite number above 0")
    # x -> (1 - x)**beta falls, so it may come first: on h * w values instead of K times as many.
    openness = 1 - _working_values(boundary)
    for images in _micro_batches(openness):
        openness[images].pow_(beta)  # its last bit may depend on the length of the vector
    return _path_extremes(openness, pairs, borders, torch.minimum)


def boundary_affinities(boundary: Tensor, settings: WalkSettings) -> tuple[Tensor, Tensor | None]:
    """Compute what the walk takes from boundaries: affinities along paths, and damping before it.

    Args:
        boundary: (1, 1, h, w) floating in [0, 1]; computed in float32.
        settings: beta, radius, borders and damping are used.

    Returns:
        (1, K, h, w), the exponent applied, and (1, 1, h, w), 1 minus the boundary, or None.
    """
    boundary = boundary.float()
    affinity = affinity_from_boundary(
        boundary, radius=settings.radius, beta=settings.beta, borders=settings.borders
    )
    return affinity, 1 - boundary if settings.damping else None


def path_maxima(boundary: Tensor, *, radius: int, borders: Borders) -> Tensor:
    """Greatest boundary on the path of every pair, differentiable; affinity is 1 minus it.

    The gradient of a pair goes to the greatest cell of its path. Of equal ones a single cell takes
    all: the one in the earliest of the parts that `path_steps` lists, and so on within that part.
    For the backward pass only the boundary is kept; it computes the maxima again and needs 2 K
    planes of one image on a CPU, of the batch elsewhere.

    Args:
        boundary: (B, 1, h, w) floating, in [0, 1]; half precision is computed in float32.
        radius: pairs lie strictly nearer than this, in grid cells; 10 in the published training.
        borders: which pairs exist, see `Borders`.

    Returns:
        (B, K, h, w), 1 where there is no pair, so that `1 - maxima` is exactly 0 there.

    Raises:
        ShapeError, DataError, ConfigError: boundary or settings as above do not hold.
    """
    pairs = PairOffsets(radius)
    _require_boundary(boundary)
    return _PathMaxima.apply(boundary, pairs, borders)  # type: ignore[no-untyped-call, no-any-return]


def path_cells(offset: Cell) -> Cells:
    """Cells between a cell and its partner: in their bounding box, nearer than 1 to their line."""
    dy, dx = offset
    columns = range(min(0, dx), max(0, dx) + 1)
    # squares of whole numbers, because some cells lie at a distance of exactly 1
    return frozenset(
        (y, x) for y in range(dy + 1) for x in columns if (y * dx - x * dy) ** 2 < dy**2 + dx**2
    )


@lru_cache(maxsize=16)
def path_steps(radius: int) -> tuple[tuple[int, tuple[PathPart, ...]], ...]:
    """Plane of every offset, short paths first, and the fewest parts whose union is its path.

    Each part belongs to an earlier path. Two parts each for radius 5, two or three for 10: 34 and
    176 maxima instead of 208 and 1982.
    """
    offsets = PairOffsets(radius).offsets
    paths = [path_cells(offset) for offset in offsets]
    known: list[tuple[int, Cell, Cells]] = [(SINGLE_CELL, (0, 0), frozenset({(0, 0)}))]
    steps = []
    for plane in sorted(range(len(offsets)), key=lambda plane: len(paths[plane])):
        parts = _fewest_parts(paths[plane], known)
        steps.append((plane, parts))
        known.insert(0, (plane, offsets[plane], paths[plane]))  # long ones are tried first
    return tuple(steps)


def _fewest_parts(target: Cells, known: list[tuple[int, Cell, Cells]]) -> tuple[PathPart, ...]:
    candidates: dict[Cells, PathPart] = {}
    for plane, (dy, dx), cells in known:
        for y, x in sorted(target):
            if (y + dy, x + dx) in target:  # spares most of the comparisons below
                moved = frozenset((y + row, x + column) for row, column in cells)
                if moved < target:
                    candidates.setdefault(moved, PathPart(plane, (y, x)))
    count = 2
    while (found := _cover(target, list(candidates), count)) is None:
        count += 1  # ends, because single cells are candidates
    return tuple(candidates[cells] for cells in found)


def _cover(missing: Cells, candidates: list[Cells], count: int) -> list[Cells] | None:
    """`count` candidates or fewer that hold all missing cells."""
    if not missing:
        return []
    if count == 1:
        return next(([cells] for cells in candidates if missing <= cells), None)
    anchor = min(missing)  # some part must hold it
    for cells in candidates:
        if anchor in cells:
            others = _cover(missing - cells, candidates, count - 1)
            if others is not None:
                return [cells, *others]
    return None


class _PathMaxima(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, boundary: Tensor, pairs: PairOffsets, borders: Borders) -> Tensor:
        ctx.save_for_backward(boundary)
        ctx.pairs, ctx.borders = pairs, borders
        return _path_extremes(_working_values(boundary), pairs, borders, torch.maximum)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (boundary,) = ctx.saved_tensors
        values = _working_values(boundary)
        result = torch.zeros_like(values)
        for images in _micro_batches(values):
            pulls = gradient[images].clone(memory_format=torch.contiguous_format)
            _fill_absent(pulls, ctx.pairs, ctx.borders, 0.0)
            _pull_back(values[images], pulls, result[images], ctx.pairs)
        return result.to(boundary.dtype), None, None


def _path_extremes(
    values: Tensor, pairs: PairOffsets, borders: Borders, extreme: Callable[..., Tensor]
) -> Tensor:
    """(B, 1, h, w) -> minima or maxima over paths, (B, K, h, w); 0 or 1 where there is no pair."""
    batch, _, height, width = values.shape
    planes = values.new_empty((batch, len(pairs), height, width))
    for images in _micro_batches(values):
        for target, parts in _windows(values[images], planes[images], pairs):
            extreme(parts[0], parts[1], out=target)
            for part in parts[2:]:
                extreme(target, part, out=target)
    _fill_absent(planes, pairs, borders, float(extreme is torch.maximum))
    return planes


def _pull_back(values: Tensor, pulls: Tensor, result: Tensor, pairs: PairOffsets) -> None:
    """Add gradients `pulls` of path maxima, (b, K, h, w), to those of the cells; uses `pulls` up.

    From long paths to short: each hands its gradient to the first part that attains its maximum.
    """
    maxima = _path_extremes(values, pairs, "full", torch.maximum)
    forward = zip(_windows(values, maxima, pairs), _windows(result, pulls, pairs), strict=True)
    for (maximum, parts), (pull, receivers) in reversed(list(forward)):
        for part, receiver in zip(parts[:-1], receivers[:-1], strict=True):
            # 0 where this part attains the maximum; masks of bool take three times as long.
            passed_on = torch.sub(maximum, part).sign_().mul_(pull)
            receiver += pull.sub_(passed_on)
            pull.copy_(passed_on)
        receivers[-1].add_(pull)


def _windows(
    values: Tensor, planes: Tensor, pairs: PairOffsets
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """For each path, short ones first: its plane and the planes of its parts, cell beside cell.

    In flattened planes a shift of cells is one number, so each window is one contiguous run from
    the first from-cell to the last. Paths of some cells in between wrap around the margin: those
    are no pairs, and no pair reads them.
    """
    height, width = values.shape[-2:]
    cells = values.view(-1, height * width)  # a view, never a copy: the backward pass adds to it
    planes = planes.view(-1, len(pairs), height * width)
    for plane, parts in path_steps(pairs.radius):
        region = pairs.from_cells(pairs.offsets[plane], (height, width), "full")
        if not is_empty(region):
            start, stop = region[1].start, (region[0].stop - 1) * width + region[1].stop
            sources = []
            for part, (dy, dx) in parts:
                source, shift = cells if part == SINGLE_CELL else planes[:, part], dy * width + dx
                sources.append(source[:, start + shift : stop + shift])
            yield planes[:, plane, start:stop], sources


def _fill_absent(planes: Tensor, pairs: PairOffsets, borders: Borders, value: float) -> None:
    for plane, offset in enumerate(pairs.offsets):
        rows, columns = pairs.from_cells(offset, (planes.shape[-2], planes.shape[-1]), borders)
        planes[:, plane, rows.stop :] = value
        planes[:, plane, :, : columns.start] = value
        planes[:, plane, :, columns.stop :] = value


def _micro_batches(values: Tensor) -> list[slice]:
    """One image at a time on a CPU, for its cache; elsewhere all, as the number of calls counts."""
    count = 1 if values.device.type == "cpu" else max(1, len(values))
    return [slice(start, start + count) for start in range(0, len(values), count)]


def _working_values(boundary: Tensor) -> Tensor:
    dtype = torch.float64 if boundary.dtype == torch.float64 else torch.float32
    return boundary.detach().to(dtype).contiguous()


def _require_boundary(boundary: Tensor) -> None:
    if boundary.ndim != 4 or boundary.shape[1] != 1 or 0 in boundary.shape[2:]:
        remedy = ": pass `boundary.unsqueeze(1)`" if boundary.ndim == 3 else ""
        raise ShapeError(
            f"`boundary` is {tuple(boundary.shape)}, expected (B, 1, h, w) with h, w >= 1{remedy}"
        )
    if not boundary.is_floating_point():
        raise DataError(f"`boundary` is {boundary.dtype}, expected floating point: convert it")
    if boundary.numel():
        low, high = (float(bound) for bound in torch.aminmax(boundary.detach()))
        # Written so that NaN fails too.
        if not (low >= 0 and high <= 1):
            found = f"`boundary` spans {low:g} to {high:g}, expected values in [0, 1] and no NaN"
            raise DataError(f"{found}: pass logits through a sigmoid")
