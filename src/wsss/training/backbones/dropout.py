"""Channel dropout whose masks do not depend on the number of processes."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
