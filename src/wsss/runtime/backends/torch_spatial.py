"""Operators over the axes behind batch and channels: convolution, pooling, normalisation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .torch_node import Attributes, Compute, Operator, plain, surrounded
from .torch_resize import resize

_AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _margins(pads: Sequence[int], rank: int) -> tuple[list[int], list[int]]:
    """Pads of a node before and after each axis; 0 where none are given."""
    values = list(pads) or [0] * (2 * rank)
    return values[:rank], values[rank:]


def _conv(given: Attributes) -> Compute:
    given.choose("auto_pad", "NOTSET")
    given.take("kernel_shape", None)  # the weights have it
    strides, pads = given.take("strides", ()), given.take("pads", ())
    dilations, groups = given.take("dilations", ()), given.take("group", 1)

    def compute(values: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = values.dim() - 2
        before, after = _margins(pads, rank)
        padding = before
        if before != after:
            values, padding = surrounded(values, before, after, 0.0), [0] * rank
        ones = [1] * rank
        return _CONV[rank](
            values, weights, bias, strides or ones, padding, dilations or ones, groups
        )

    return compute


@dataclass(frozen=True)
class _Windows:
    """Attributes that both kinds of pooling share."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]
    ceil: bool

    @property
    def fit_torch(self) -> bool:
        """Whether torch takes the margins: alike on both sides, at most half a window."""
        halves = [size // 2 for size in self.kernel]
        margins = zip(self.before, halves, strict=True)
        return self.before == self.after and all(margin <= half for margin, half in margins)


def _windows(given: Attributes) -> _Windows:
    given.choose("auto_pad", "NOTSET")
    kernel = list(given.take("kernel_shape", None))
    ones = [1] * len(kernel)
    before, after = _margins(given.take("pads", ()), len(kernel))
    windows = _Windows(
        kernel,
        given.take("strides", ones),
        given.take("dilations", ones),
        before,
        after,
        bool(given.choose("ceil_mode", 0, 1)),
    )
    if windows.ceil and not windows.fit_torch:
        # A last window that starts in the margin behind the map would have to be left out.
        raise given.refusal("uneven or wide `pads` with `ceil_mode` are not supported by torch")
    return windows


def _average_pool(given: Attributes) -> Compute:
    windows = _windows(given)
    if set(windows.dilations) != {1}:
        raise given.refusal("`dilations` other than 1 are not supported by the torch backend")
    counts_margins = bool(given.choose("count_include_pad", 0, 1))
    pool: Callable[..., Tensor] = _AVERAGE_POOL[len(windows.kernel)]
    kernel, strides, none = windows.kernel, windows.strides, [0] * len(windows.kernel)

    def mean(values: Tensor) -> Tensor:
        values = surrounded(values, windows.before, windows.after, 0.0)
        return pool(values, kernel, strides, none)

    def compute(values: Tensor) -> Tensor:
        if windows.fit_torch:
            return pool(values, kernel, strides, windows.before, windows.ceil, counts_margins)
        # Zeros in the margins pull a mean down by the share of the window that they fill.
        return mean(values) if counts_margins else mean(values) / mean(torch.ones_like(values))

    return compute


def _max_pool(given: Attributes) -> Compute:
    windows = _windows(given)
    given.choose("storage_order", 0)
    if given.num_outputs > 1:
        raise given.refusal("the output of indices is not supported by the torch backend")
    pool: Callable[..., Tensor] = _MAX_POOL[len(windows.kernel)]

    def compute(values: Tensor) -> Tensor:
        padding = windows.before
        if not windows.fit_torch:
            values = surrounded(values, windows.before, windows.after, -math.inf)
            padding = [0] * len(padding)
        return pool(
            values, windows.kernel, windows.strides, padding, windows.dilations, windows.ceil
        )

    return compute


def _batch_normalization(given: Attributes) -> Compute:
    epsilon = given.take("epsilon", 1e-5)
    given.take("momentum", None)  # of training alone
    given.choose("training_mode", 0)

    def compute(
        values: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
    ) -> Tensor:
        return F.batch_norm(values, mean, variance, scale, bias, False, 0.0, epsilon)

    return compute


def _instance_normalization(given: Attributes) -> Compute:
    epsilon = given.take("epsilon", 1e-5)

    def compute(values: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        # One channel a group. F.instance_norm refuses maps of one element.
        return torch.group_norm(values, values.shape[1], scale, bias, epsilon)

    return compute


def _global_average(values: Tensor) -> Tensor:
    return values.mean(tuple(range(2, values.dim())), keepdim=True)


SPATIAL: dict[str, Operator] = {
    "AveragePool": Operator(_average_pool),
    "BatchNormalization": Operator(_batch_normalization),
    "Conv": Operator(_conv),
    "GlobalAveragePool": plain(_global_average),
    "InstanceNormalization": Operator(_instance_normalization),
    "MaxPool": Operator(_max_pool),
    "Resize": Operator(resize, frozenset({1, 2, 3})),
}
"""Operator type in the domain of ONNX -> what computes it."""
