"""Guided filter: maps take on the structure of a colour image.

In every window a map is replaced by the linear function of the image's colour that fits it best; a
pixel gets the mean of what the windows around it say. Source: He, Sun and Tang, "Guided Image
Filtering" (ECCV 2010; PAMI 2013), with a colour guide. Windows are cut at the borders of the image,
so that each mean is over pixels that exist.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError, DataError, ShapeError

COLOURS = 3
_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
"""Upper triangle of a covariance of colours."""
_SYMMETRIC = [[0, 1, 2], [1, 3, 4], [2, 4, 5]]
"""Which of `_PAIRS` an entry of the whole matrix is."""


@torch.no_grad()
def guided_filter(maps: Tensor, guide: Tensor, *, radius: int, eps: float) -> Tensor:
    """Filter maps along an image.

    Args:
        maps: (B, n, H, W) floating, n may be 0.
        guide: (B, 3, H, W) floating, colours in [0, 1].
        radius: windows have 2 * radius + 1 pixels a side.
        eps: > 0; where the colours of a window vary by less than this (a variance), it smooths.

    Returns:
        (B, n, H, W), type of `maps`; may leave the range of `maps` a little. A constant map stays.

    Raises:
        ShapeError, DataError, ConfigError: shapes, types or settings as above do not hold.
    """
    _require(maps, guide, radius, eps)
    if not maps.shape[1]:
        return maps.clone()
    guide = guide.to(maps.dtype)
    mean_guide, mean_maps = box_mean(guide, radius), box_mean(maps, radius)
    products = guide[:, None] * maps[:, :, None]  # (B, n, 3, H, W)
    mean_products = box_mean(products.flatten(1, 2), radius).view(products.shape)
    covariance = mean_products - mean_guide[:, None] * mean_maps[:, :, None]
    slopes = _solve(_colour_covariance(guide, mean_guide, radius, eps), covariance)
    offsets = mean_maps - (slopes * mean_guide[:, None]).sum(2)
    mean_slopes = box_mean(slopes.flatten(1, 2), radius).view(slopes.shape)
    return (mean_slopes * guide[:, None]).sum(2) + box_mean(offsets, radius)


def box_mean(planes: Tensor, radius: int) -> Tensor:
    """(B, n, H, W) -> mean of the window around each pixel, cut at the borders."""
    side = 2 * radius + 1
    rows = F.avg_pool2d(planes, (side, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, side), 1, (0, radius), count_include_pad=False)


def _colour_covariance(guide: Tensor, mean: Tensor, radius: int, eps: float) -> list[Tensor]:
    """The entries `_PAIRS` of the covariance of colours in each window, eps on the diagonal."""
    products = torch.stack([guide[:, i] * guide[:, j] for i, j in _PAIRS], 1)
    means = torch.stack([mean[:, i] * mean[:, j] for i, j in _PAIRS], 1)
    entries = box_mean(products, radius) - means
    return [entries[:, k] + (eps if i == j else 0) for k, (i, j) in enumerate(_PAIRS)]


def _solve(covariance: list[Tensor], right: Tensor) -> Tensor:
    """Solve a symmetric 3 x 3 system at every pixel, by its adjugate.

    Args:
        covariance: six (B, H, W) entries of `_PAIRS`.
        right: (B, n, 3, H, W).
    """
    rr, rg, rb, gg, gb, bb = covariance
    adjugate = (
        gg * bb - gb * gb,
        rb * gb - rg * bb,
        rg * gb - rb * gg,
        rr * bb - rb * rb,
        rb * rg - rr * gb,
        rr * gg - rg * rg,
    )
    determinant = rr * adjugate[0] + rg * adjugate[1] + rb * adjugate[2]
    inverse = (torch.stack(adjugate, 1) / determinant[:, None])[:, _SYMMETRIC]  # (B, 3, 3, H, W)
    return (inverse[:, None] * right[:, :, None]).sum(3)


def _require(maps: Tensor, guide: Tensor, radius: int, eps: float) -> None:
    size = maps.shape[-2:]
    if maps.ndim != 4 or tuple(guide.shape) != (maps.shape[0], COLOURS, *size) or 0 in size:
        raise ShapeError(
            f"`maps` are {tuple(maps.shape)} and `guide` {tuple(guide.shape)}, expected "
            "(B, n, H, W) and (B, 3, H, W)"
        )
    for name, values in (("maps", maps), ("guide", guide)):
        if not values.is_floating_point():
            raise DataError(f"`{name}` are {values.dtype}, expected floating point")
    if radius < 1 or not eps > 0:
        raise ConfigError(
            f"`radius` is {radius} and `eps` {eps}, must be at least 1 and greater than 0"
        )
