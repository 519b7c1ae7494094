"""Resize of the last two axes: linear as torch does it, nearest by the rules of ONNX."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .torch_node import Attributes, Compute, numbers

Rounding = Callable[[Tensor], Tensor]

_HALF_PIXEL, _PYTORCH = "half_pixel", "pytorch_half_pixel"
_CORNERS, _ASYMMETRIC = "align_corners", "asymmetric"
_TIE = 1e-6
"""How near to the middle of two pixels a place counts as the middle; onnxruntime has the same."""
_ROUNDINGS: dict[str, Rounding] = {
    "round_prefer_floor": lambda places: torch.ceil(places - 0.5 - _TIE),
    "round_prefer_ceil": lambda places: torch.floor(places + 0.5 + _TIE),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def resize(given: Attributes) -> Compute:
    """What computes a `Resize` node with these attributes."""
    mode = given.choose("mode", "nearest", "linear")
    linear = (_HALF_PIXEL, _PYTORCH, _CORNERS)
    accepted = linear if mode == "linear" else (*linear, _ASYMMETRIC)
    coordinates = given.choose("coordinate_transformation_mode", *accepted)
    rounding = _ROUNDINGS[given.choose("nearest_mode", *_ROUNDINGS)]
    given.choose("antialias", 0)
    given.choose("exclude_outside", 0)
    given.choose("keep_aspect_ratio_policy", "stretch")
    given.take("cubic_coeff_a", None)  # exporters write it without use, like the next one
    given.take("extrapolation_value", None)
    axes = given.take("axes", None)

    def compute(
        values: Tensor, roi: Tensor | None, scales: Tensor | None, sizes: Tensor | None = None
    ) -> Tensor:
        before = values.shape
        factors, after = _target(before, scales, sizes, axes)
        if after[:-2] != list(before[:-2]):
            raise ValueError(
                f"{tuple(before)} to {tuple(after)}: only the last two axes may change"
            )
        planes = values if values.dim() == 4 else values.reshape(1, -1, *before[-2:])
        if mode == "linear":
            result = _linear(planes, after[-2:], factors[-2:], coordinates)
        else:
            result = _nearest(planes, after[-2:], factors[-2:], coordinates, rounding)
        return result.reshape(after)

    return compute


def _target(
    before: torch.Size, scales: Tensor | None, sizes: Tensor | None, axes: list[int] | None
) -> tuple[list[np.float32 | None], list[int]]:
    """Factor of every axis, None where only its new size is known; and that size."""
    places = range(len(before)) if axes is None else axes
    factors: list[np.float32 | None] = [None] * len(before)
    after = list(before)
    if sizes is not None and sizes.numel():
        for place, size in zip(places, numbers(sizes), strict=True):
            after[place] = size
    elif scales is not None:
        for place, scale in zip(places, scales.tolist(), strict=True):
            factors[place] = factor = np.float32(scale)
            # In float32, as onnxruntime does: 10 * 0.7 is 7, in float64 a little less.
            after[place] = int(factor * np.float32(before[place]))
    return factors, after


def _linear(
    planes: Tensor, size: list[int], factors: list[np.float32 | None], coordinates: str
) -> Tensor:
    if coordinates == _PYTORCH:
        # An axis of one element takes the first one, where half_pixel takes the middle.
        for axis, target in enumerate(size, start=2):
            if target == 1:
                planes, factors[axis - 2] = planes.narrow(axis, 0, 1), None
    vertical, horizontal = (None if factor is None else float(factor) for factor in factors)
    result: Tensor = torch.ops.aten.upsample_bilinear2d(
        planes, size, coordinates == _CORNERS, vertical, horizontal
    )
    return result


def _nearest(
    planes: Tensor,
    size: list[int],
    factors: list[np.float32 | None],
    coordinates: str,
    rounding: Rounding,
) -> Tensor:
    for axis, (target, factor) in enumerate(zip(size, factors, strict=True), start=2):
        length = planes.shape[axis]
        places = _places(length, target, factor, coordinates)
        index = rounding(places.double()).clamp(0, length - 1).long()
        planes = planes.index_select(axis, index.to(planes.device))
    return planes


def _places(length: int, target: int, factor: np.float32 | None, coordinates: str) -> Tensor:
    """Where each new pixel lies among the old ones."""
    # In float32, as onnxruntime does: near a tie the rounding decides which pixel is the nearest.
    new = torch.arange(target, dtype=torch.float32)
    if coordinates == _CORNERS:
        return new * (length - 1) / max(target - 1, 1)
    if coordinates == _PYTORCH and target == 1:
        return torch.zeros(1)
    scale = float(np.float32(target) / np.float32(length) if factor is None else factor)
    return new / scale if coordinates == _ASYMMETRIC else (new + 0.5) / scale - 0.5
