"""Operators that move, cut, join or count elements without computing with them."""

import math
from collections.abc import Sequence

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from .torch_node import Attributes, Compute, Operator, numbers, plain, surrounded, with_settings


def _concat(given: Attributes) -> Compute:
    axis = given.take("axis", None)
    return lambda *values: torch.cat(values, axis)


def _constant_of_shape(given: Attributes) -> Compute:
    value: onnx.TensorProto | None = given.take("value", None)
    fill: float = 0.0
    dtype = torch.float32
    if value is not None:
        dtype = given.checked_type(value.data_type)
        fill = numpy_helper.to_array(value).item()
    return lambda shape: torch.full(numbers(shape), fill, dtype=dtype)


def _expand(values: Tensor, shape: Tensor) -> Tensor:
    # Both ways: an axis of the values may be longer than what the shape says.
    both = torch.broadcast_shapes(values.shape, numbers(shape))  # type: ignore[no-untyped-call]
    return values.expand(both)


def _flatten(given: Attributes) -> Compute:
    axis = given.take("axis", 1)

    def compute(values: Tensor) -> Tensor:
        shape, first = values.shape, axis if axis >= 0 else values.dim() + axis
        return values.reshape(math.prod(shape[:first]), math.prod(shape[first:]))

    return compute


def _gather(given: Attributes) -> Compute:
    axis = given.take("axis", 0)

    def compute(values: Tensor, indices: Tensor) -> Tensor:
        if indices.dim() == 0 and indices.device.type == "cpu":
            return values.select(axis, int(indices))  # nothing is copied, to no device
        if values.device.type == "cpu":
            values = values.to(indices.device)
        indices = indices.to(values.device)
        place = axis % values.dim()
        flat = indices.reshape(-1)
        flat = torch.where(flat < 0, flat + values.shape[place], flat)
        rows = values.index_select(place, flat)
        return rows.reshape(values.shape[:place] + indices.shape + values.shape[place + 1 :])

    return compute


def _nonzero(values: Tensor) -> Tensor:
    return torch.nonzero(values).T


def _pad(given: Attributes) -> Compute:
    given.choose("mode", "constant")

    def compute(
        values: Tensor, pads: Tensor, constant: Tensor | None = None, axes: Tensor | None = None
    ) -> Tensor:
        amounts = numbers(pads)
        count = len(amounts) // 2
        places = range(values.dim()) if axes is None else numbers(axes)
        before, after = [0] * values.dim(), [0] * values.dim()
        for place, low, high in zip(places, amounts[:count], amounts[count:], strict=True):
            before[place], after[place] = low, high
        return surrounded(values, before, after, 0 if constant is None else constant.item())

    return compute


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    first, last, step = (value.item() for value in (start, limit, delta))
    count = max(0, math.ceil((last - first) / step))
    return torch.arange(count, dtype=start.dtype) * step + first


def _reshape(given: Attributes) -> Compute:
    given.choose("allowzero", 0)

    def compute(values: Tensor, shape: Tensor) -> Tensor:
        sizes = numbers(shape)
        return values.reshape([size or values.shape[axis] for axis, size in enumerate(sizes)])

    return compute


def _shape(given: Attributes) -> Compute:
    start, end = given.take("start", 0), given.take("end", None)
    return lambda values: torch.tensor(values.shape[start:end], dtype=torch.int64)


def _size(values: Tensor) -> Tensor:
    return torch.tensor(values.numel())


def _slice(
    values: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    firsts, lasts = numbers(starts), numbers(ends)
    places = list(range(len(firsts))) if axes is None else numbers(axes)
    strides = [1] * len(firsts) if steps is None else numbers(steps)
    for first, last, place, stride in zip(firsts, lasts, places, strides, strict=True):
        values = _cut(values, first, last, place, stride)
    return values


def _cut(values: Tensor, start: int, end: int, axis: int, step: int) -> Tensor:
    """Python's slice along one axis; torch itself takes no negative steps."""
    size = values.shape[axis]
    if step < 0 and start < -size:
        start = -size  # ONNX begins at the first element, where Python finds nothing
    chosen = range(size)[start:end:step]
    if step < 0:
        chosen = chosen[::-1]
    index: list[slice] = [slice(None)] * values.dim()
    index[axis] = slice(chosen.start, max(chosen.start, chosen.stop), chosen.step)
    part = values[tuple(index)]
    return part.flip(axis) if step < 0 else part


def _split(given: Attributes) -> Compute:
    axis, count = given.take("axis", 0), given.take("num_outputs", 0)

    def compute(values: Tensor, sizes: Tensor | None = None) -> Sequence[Tensor]:
        if sizes is not None:
            return torch.split_with_sizes(values, numbers(sizes), axis)
        whole = values.shape[axis]
        part = -(-whole // count)
        parts = [part] * (count - 1) + [whole - part * (count - 1)]
        return torch.split_with_sizes(values, parts, axis)

    return compute


def _squeeze(values: Tensor, axes: Tensor | None = None) -> Tensor:
    if axes is None:
        return values.squeeze()
    places = numbers(axes)
    for place in places:
        if values.shape[place] != 1:  # torch would leave it as it is
            raise ValueError(f"axis {place} of {tuple(values.shape)} is squeezed, but is not 1")
    return values.squeeze(tuple(places))


def _transpose(given: Attributes) -> Compute:
    order = given.take("perm", None)

    def compute(values: Tensor) -> Tensor:
        # As a view it would be copied again by every product in a loop that reads it.
        return values.permute(order or tuple(reversed(range(values.dim())))).contiguous()

    return compute


def _unsqueeze(values: Tensor, axes: Tensor) -> Tensor:
    places = numbers(axes)
    rank = values.dim() + len(places)
    for place in sorted(place % rank for place in places):
        values = values.unsqueeze(place)
    return values


LAYOUT: dict[str, Operator] = {
    "Concat": Operator(_concat),
    "ConstantOfShape": with_settings(_constant_of_shape, 0),
    "Expand": with_settings(lambda given: _expand, 1),
    "Flatten": Operator(_flatten),
    "Gather": with_settings(_gather, 1),
    "NonZero": plain(_nonzero),
    "Pad": with_settings(_pad, 1, 2, 3),
    "Range": with_settings(lambda given: _range, 0, 1, 2),
    "Reshape": with_settings(_reshape, 1),
    "Shape": Operator(_shape),
    "Size": plain(_size),
    "Slice": with_settings(lambda given: _slice, 1, 2, 3, 4),
    "Split": with_settings(_split, 1),
    "Squeeze": with_settings(lambda given: _squeeze, 1),
    "Transpose": Operator(_transpose),
    "Unsqueeze": with_settings(lambda given: _unsqueeze, 1),
}
"""Operator type in the domain of ONNX -> what computes it."""
