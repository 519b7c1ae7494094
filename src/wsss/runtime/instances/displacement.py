"""Displacement fields followed to centroids, and the grid cells whose centroids are one instance's.

Source: IRNet (Ahn, Cho, Kwak, CVPR 2019) and its published code. Deviations: a cell that has come
to rest moves no further, which changes no bit of the result; and clusters are numbered by their
first cell instead of by patch, which matters to nothing but ties.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from ...errors import ConfigError, DataError, MissingDependencyError, ShapeError
from .settings import ROUND_TRIP, Sizes

Form = Literal["auto", "torch", "native"]
"""torch works everywhere; native is compiled by numba for a CPU. Both give the same bits."""
Refinement = Callable[[Tensor, Sizes, int], Tensor]
"""((B, 2, h, w) field, sizes, steps) -> (B, 2, h, w) positions, not rounded."""

_NATIVE_CELLS = 4096
"""Cells from which the compiled form is worth the second that loading it takes once."""


@torch.no_grad()
def refine_centroids(
    displacement: Tensor, *, steps: int = 300, sizes: Sizes | None = None, form: Form = "auto"
) -> Tensor:
    """Where each cell arrives that follows the displacement field.

    Starts at the cell itself; a step adds the field, bilinear between the four cells around, and
    clips to the grid. Each image is computed by itself: neither its companions nor padding have
    any influence.

    Args:
        displacement: (B, 2, h, w) floating and finite, (dy, dx) in grid cells; half precision is
            computed in float32.
        steps: >= 0; the published code takes 300.
        sizes: of the images in the top left of a padded batch; None where all fill (h, w).
        form: what computes it; `auto` takes the fastest that is installed for device and size.

    Returns:
        (B, 2, h, w) int64: row and column, half way between two cells the even one. Cells of the
        padding keep their own position.

    Raises:
        ShapeError: not (B, 2, h, w), or a size that does not fit in.
        DataError: NaN or infinity. ConfigError: steps or form as above do not hold.
        MissingDependencyError: the form's package is not installed.
    """
    _require_field(displacement)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise ConfigError(f"`steps` is {steps}, must be a whole number >= 0")
    batch, _, height, width = displacement.shape
    sizes = [(height, width)] * batch if sizes is None else sizes
    _require_sizes(sizes, batch, height, width)
    dtype = torch.float64 if displacement.dtype == torch.float64 else torch.float32
    refine = _choose_form(displacement, form)
    return refine(displacement.to(dtype), sizes, steps).round().long()


def _choose_form(displacement: Tensor, form: Form) -> Refinement:
    if form not in get_args(Form):
        raise ConfigError(f"unknown `form` '{form}': choose one of {', '.join(get_args(Form))}")
    on_cpu = displacement.device.type == "cpu"
    if form == "native" and not on_cpu:
        raise ConfigError(
            f"`form` 'native' computes on a CPU, the field is on {displacement.device}: choose auto"
        )
    if form == "torch" or not on_cpu or (form == "auto" and displacement.numel() < _NATIVE_CELLS):
        return _refine_in_torch
    native = _load_native()
    if native is None and form == "native":
        raise MissingDependencyError(
            "`form` 'native' cannot be used: numba is not installed or does not work here "
            "(pip install 'wsss[fast]'); choose torch"
        )
    return native or _refine_in_torch


@lru_cache(maxsize=1)
def _load_native() -> Refinement | None:
    """None where numba is not installed or does not work; the walk says the reason."""
    try:
        from .displacement_numba import refine_natively
    except (ImportError, RuntimeError):
        return None
    return refine_natively


def _refine_in_torch(field: Tensor, sizes: Sizes, steps: int) -> Tensor:
    """All moving cells of the batch step together; after each round trip those at rest leave."""
    batch, _, height, width = field.shape
    device = field.device
    # One more row and column, so that the lower right neighbour of every position exists.
    planes = pad(field, (0, 1, 0, 1)).transpose(0, 1).flatten(1)  # (2, B * (h + 1) * (w + 1))
    rows = torch.arange(height, device=device).view(1, height, 1).expand(batch, height, width)
    columns = torch.arange(width, device=device).view(1, 1, width).expand(batch, height, width)
    ends = torch.tensor(sizes, device=device).view(batch, 2, 1, 1)
    inside = (rows < ends[:, 0]) & (columns < ends[:, 1])
    arrived = torch.stack([rows, columns]).flatten(1).to(field.dtype)  # (2, B * h * w)
    slots = inside.flatten().nonzero()[:, 0]
    image = slots // (height * width)
    origin = image * ((height + 1) * (width + 1))
    limit = (ends.view(batch, 2)[image].t() - 1).to(field.dtype)
    position = _follow(planes, arrived[:, slots], origin, limit, width + 1, steps % ROUND_TRIP)
    arrived[:, slots] = position
    for _ in range(steps // ROUND_TRIP):
        before = position
        position = _follow(planes, position, origin, limit, width + 1, ROUND_TRIP)
        arrived[:, slots] = position
        moving = (position != before).any(0).nonzero()[:, 0]
        if not len(moving):
            break
        if len(moving) < len(slots):
            slots, origin = slots[moving], origin[moving]
            position, limit = position[:, moving], limit[:, moving]
    return arrived.view(2, batch, height, width).transpose(0, 1)


def _follow(
    planes: Tensor, position: Tensor, origin: Tensor, limit: Tensor, row: int, steps: int
) -> Tensor:
    """`steps` steps of (2, n) positions. Each operation by itself, so that no form rounds apart."""
    for _ in range(steps):
        cell = position.long()  # none is negative
        (down, right), (up, left) = (share := position - cell), 1 - share
        corner = origin + cell[0] * row + cell[1]
        above = planes[:, corner] * left + planes[:, corner + 1] * right
        below = planes[:, corner + row] * left + planes[:, corner + (row + 1)] * right
        moved = position + (above * up + below * down)
        position = torch.minimum(moved.clamp_(min=0), limit)
    return position


def _require_field(displacement: Tensor) -> None:
    if displacement.ndim != 4 or displacement.shape[1] != 2 or 0 in displacement.shape[2:]:
        remedy = ": pass `displacement.unsqueeze(0)`" if displacement.ndim == 3 else ""
        raise ShapeError(
            f"`displacement` is {tuple(displacement.shape)}, expected (B, 2, h, w) with h, w >= 1"
            f"{remedy}"
        )
    if not displacement.is_floating_point():
        raise DataError(f"`displacement` is {displacement.dtype}, expected floating point")
    if not bool(torch.isfinite(displacement).all()):
        raise DataError("`displacement` holds NaN or infinity, expected finite values")


def _require_sizes(sizes: Sizes, batch: int, height: int, width: int) -> None:
    if len(sizes) != batch:
        raise ShapeError(f"{batch} images have {len(sizes)} `sizes`: give one each")
    for index, (rows, columns) in enumerate(sizes):
        if not (1 <= rows <= height and 1 <= columns <= width):
            raise ShapeError(
                f"image {index}: size {rows} x {columns} does not fit in the batch's {height} x "
                f"{width} cells, expected at least 1 x 1 and no more than these"
            )


def cluster_cells(
    displacement: NDArray[np.floating], centroids: NDArray[np.int64], *, radius: float = 2.5
) -> NDArray[np.int64]:
    """Cluster of every cell of one image.

    Cells whose vector is shorter than `radius` are calm; 4-connected calm cells are a patch. Cells
    whose centroids lie in one patch are a cluster, and so are those whose centroids lie in none.

    Args:
        displacement: (2, h, w), (dy, dx) in grid cells.
        centroids: (2, h, w), row and column, as `refine_centroids` returns them.
        radius: in grid cells.

    Returns:
        (h, w), 0..K-1; cluster k has its first cell, row by row, before that of cluster k + 1.
    """
    # In float64 squares of float32 are exact, so that no rounding decides who is calm.
    squares = np.square(displacement, dtype=np.float64).sum(0)
    calm = (squares < radius**2).astype(np.uint8)
    _, patches = cv2.connectedComponents(calm, connectivity=4)
    return _number_by_first_cell(patches[centroids[0], centroids[1]])


def _number_by_first_cell(labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """(h, w) labels -> the same parts as 0..K-1 in the order of their first cells."""
    _, first, part = np.unique(labels, return_index=True, return_inverse=True)
    return first.argsort().argsort()[part].reshape(labels.shape)
