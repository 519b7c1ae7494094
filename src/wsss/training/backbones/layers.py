"""Layers of networks that train the same however a batch is split over processes.

Batch normalisation has fixed statistics, scale and shift; the masks of dropout are drawn for the
whole batch. All methods keep batch normalisation frozen, because their batches are small.
"""

from typing import Any, cast

import numpy as np
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


# Third key of the generators of a training: 1 is the order of images, 2 their augmentation.
DROPOUT_STREAM = 3


class BatchKeyedDropout2d(nn.Module):
    """Dropout of whole channels, drawn for the whole batch of a step and cut to own rows.

    The mask is a function of (seed, step, position of the layer), so two processes with half a
    batch each drop what one process with the whole batch drops, and a resumed training goes on
    as if it had not stopped. Calls within one step share their mask. Before
    `set_dropout_context` was called the masks come from torch's global generator.

    Args:
        probability: of a channel to be zeroed, in [0, 1); the others are scaled up to keep the
            mean. Nothing happens in eval mode.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"dropout probability is {probability}, must be in [0, 1)")
        self.probability = probability
        self.key: tuple[int, int, int] | None = None
        self.global_batch = 0
        self.first_row = 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, h, w) -> same shape."""
        if not self.training or self.probability == 0:
            return x
        if self.key is None:
            return F.dropout2d(x, self.probability, training=True)
        return x * self._mask(x)

    def _mask(self, x: Tensor) -> Tensor:
        rows, channels = x.shape[:2]
        last_row = self.first_row + rows
        if last_row > self.global_batch:
            raise ValueError(
                f"rows {self.first_row}..{last_row} lie outside of a batch of {self.global_batch}"
            )
        generator = np.random.default_rng([self.key[0], DROPOUT_STREAM, *self.key[1:]])  # type: ignore[index]
        draws = generator.random((self.global_batch, channels), dtype=np.float32)
        kept = torch.from_numpy(draws[self.first_row : last_row] >= self.probability)
        mask = kept.to(x.device, x.dtype) / (1 - self.probability)
        return mask[:, :, None, None]

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


def set_dropout_context(
    module: nn.Module, seed: int, step: int, global_batch: int, first_row: int
) -> None:
    """Key the masks of all dropout layers below `module` for the coming step.

    Args:
        seed: of the training, >= 0.
        step: counted from 0.
        global_batch: images of the step over all processes.
        first_row: position of this process's first image in that batch.
    """
    layers = (part for part in module.modules() if isinstance(part, BatchKeyedDropout2d))
    for index, layer in enumerate(layers):
        layer.key = (seed, step, index)
        layer.global_batch = global_batch
        layer.first_row = first_row
