"""Batch normalisation by the statistics of the whole batch, however many processes share it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...engine import distributed
from ..shared.losses import at_least_float32


class WholeBatchNorm2d(nn.Module):
    """Batch normalisation that gives several processes what one would compute.

    Its tensors have the names of `nn.BatchNorm2d`.

    Args:
        scale: every channel's at the start.
        momentum: share of a batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, num_features: int, scale: float = 1.0, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.full((num_features,), scale))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor, track: bool = True) -> Tensor:
        """(B, F, h, w) -> same shape.

        Args:
            track: whether the running statistics follow this batch; while training.
        """
        if self.training and distributed.world_size() > 1:
            return self._over_processes(x, track)
        mean, variance = self.running_mean, self.running_var
        if self.training and not track:  # what then follows the batch is thrown away
            mean, variance = mean.clone(), variance.clone()
        return F.batch_norm(
            x, mean, variance, self.weight, self.bias, self.training, self.momentum, self.eps
        )

    def _over_processes(self, x: Tensor, track: bool) -> Tensor:
        """Every process has equally many rows of the batch."""
        values = at_least_float32(x)
        count = values.numel() // values.shape[1] * distributed.world_size()
        mean = distributed.sum_with_gradient(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = distributed.sum_with_gradient(centred.square().sum((0, 2, 3))) / count
        if track:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / max(count - 1, 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
