"""Where grid cells lie on pixels, and the resizing that follows from it.

`reference` stretches a grid over the whole image, as the released codes do. `corners` puts cell i
at pixel i * stride, where a zero-padded strided convolution computes it; it needs sides of
k * stride + 1 and keeps maps from drifting by half a cell.
"""

import math
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Align = Literal["reference", "corners"]


def exact_ratio(scale: float) -> Fraction:
    """The scale as whole numbers, so that graphs round sizes in integers exactly as we do here."""
    return Fraction(scale).limit_denominator(1000)


def scaled_size(size: tuple[int, int], scale: float, align: Align, stride: int) -> tuple[int, int]:
    """(height, width) to which an image is resized before a network with this stride."""
    ratio = exact_ratio(scale)
    if align == "reference":
        return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))
    height, width = (max(1, round((side - 1) * ratio / stride)) * stride + 1 for side in size)
    return height, width


def grid_size(size: tuple[int, int], stride: int, align: Align = "reference") -> tuple[int, int]:
    """Cells that cover an image: ceil(side / stride), or the corner grid next to it."""
    if align == "corners" and stride > 1:
        return round((size[0] - 1) / stride) + 1, round((size[1] - 1) / stride) + 1
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)


def resize(maps: Tensor, size: tuple[int, int], align: Align) -> Tensor:
    """Bilinear resize of (B, C, h, w) to `size` under the alignment rule."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=align == "corners")


def to_full_size(maps: Tensor, size: tuple[int, int], align: Align) -> Tensor:
    """Bring (n, h, w) grid maps to the image's (height, width).

    Under `reference` every cell covers stride x stride pixels: maps are enlarged by the stride and
    what reaches beyond the image is cut, as the released codes do after padding the image.
    """
    if not len(maps):
        return maps.new_zeros(0, *size)
    if align == "corners":
        return resize(maps[None], size, align)[0]
    stride = [-(-side // cells) for side, cells in zip(size, maps.shape[1:], strict=True)]
    covered = (maps.shape[1] * stride[0], maps.shape[2] * stride[1])
    return resize(maps[None], covered, align)[0][:, : size[0], : size[1]]


def image_tensor(image: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """(H, W, 3) uint8 array as (1, 3, H, W) float32 in 0..255."""
    tensor = torch.from_numpy(image).to(device)
    return tensor.permute(2, 0, 1).unsqueeze(0).float()


def reduce_by_mean(planes: Tensor, stride: int) -> Tensor:
    """Mean over stride x stride blocks of (B, C, H, W); the image is padded with zeros to fit."""
    return F.avg_pool2d(pad_to_multiple(planes, stride), stride)


def pad_to_multiple(planes: Tensor, stride: int) -> Tensor:
    """(B, C, H, W) with zeros at the right and below, until the stride divides both sides."""
    height, width = planes.shape[-2:]
    return F.pad(planes, (0, -width % stride, 0, -height % stride))
