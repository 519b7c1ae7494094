"""Which of many score planes wins each pixel, without holding them all at full size."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..refine.geometry import Align, to_full_size
from .segments import row_strips

_VALUES_AT_ONCE = 2**22
"""Full-size values that exist together: 16 MiB in float32, or one plane where it is larger."""


class RunningArgmax:
    """Running argmax of grid planes, brought to full size some at a time.

    Args:
        size: (height, width) of the image.
        threshold: background constant that scores have to exceed, in [0, 1].
        scale: score planes are divided by it; None for their greatest value at full size.
    """

    def __init__(
        self,
        size: tuple[int, int],
        align: Align,
        *,
        threshold: float,
        scale: float | None,
        device: torch.device,
    ) -> None:
        self._size, self._align, self._threshold = size, align, threshold
        self._scale = scale
        self._greatest = 0.0
        self._values = torch.zeros(size, device=device)
        self._winners = torch.zeros(size, dtype=torch.int32, device=device)
        self._num_planes = 0

    def add(self, planes: Tensor) -> None:
        """Let (n, h, w) float32 planes >= 0 take part; of equals the one that came first wins.

        A plane that exceeds the background nowhere on the grid is left out: interpolation never
        leaves the range of its values, and the scale can only grow.
        """
        if not len(planes):
            return
        heights = planes.amax((1, 2))
        tallest = int(heights.argmax())
        peak = float(self._enlarge(planes[tallest : tallest + 1]).amax())
        self._greatest = max(self._greatest, peak)
        candidates = (heights > self._floor()).nonzero()[:, 0]
        together = max(1, _VALUES_AT_ONCE // self._values.numel())
        for start in range(0, len(candidates), together):
            some = candidates[start : start + together]
            numbers = (some + (self._num_planes + 1)).to(torch.int32)
            self._compete(self._enlarge(planes[some]), numbers)
        self._num_planes += len(planes)

    def _compete(self, enlarged: Tensor, numbers: Tensor) -> None:
        """(n, H, W) against the winners so far; some rows at a time, for copies are made."""
        for rows in row_strips(self._size, _VALUES_AT_ONCE):
            values, place = enlarged[:, rows].max(0)
            is_better = values > self._values[rows]
            self._winners[rows] = torch.where(is_better, numbers[place], self._winners[rows])
            self._values[rows] = torch.where(is_better, values, self._values[rows])

    def result(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """(H, W): 0 background, p + 1 where plane p wins; and the winner's score, in [0, 1]."""
        self._greatest = float(self._values.amax())
        scale = self._scale or self._greatest or 1.0  # all planes may be zero
        scores = (self._values / scale).clamp_(max=1)
        winners = self._winners.where(self._values > self._floor(), 0)
        return winners.cpu().numpy(), scores.cpu().numpy()

    def _floor(self) -> float:
        return self._threshold * (self._scale or self._greatest)

    def _enlarge(self, planes: Tensor) -> Tensor:
        return to_full_size(planes, self._size, self._align)
