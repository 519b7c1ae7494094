"""Batch normalisation with fixed statistics, scale and shift.

All four methods keep batch normalisation frozen: their batches are small, and frozen layers make
the result independent of how a batch is split over processes.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenBatchNorm2d(nn.Module):
    """Affine map per channel from stored statistics; `train()` changes nothing.

    Its tensors have the names of `nn.BatchNorm2d` but are buffers, so no optimiser sees them.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, h, w) -> same shape."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The layer as x * scale + shift, each (F,)."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # nn.BatchNorm2d counts its updates; there are none here.
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def convolve_normalised(convolution: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(convolution(x))`, as one convolution with folded weights where `norm` is frozen.

    Exact up to rounding; saves a pass over the feature map forward and another backward. The
    gradient reaches the weights of the convolution through the fold.

    Args:
        convolution: `nn.Conv2d` without bias, zero padding.
        norm: of its output.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        return cast(Tensor, norm(convolution(x)))
    convolution = cast(nn.Conv2d, convolution)
    scale, shift = norm.scale_and_shift()
    return F.conv2d(
        x,
        convolution.weight * scale[:, None, None, None],
        shift,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )
