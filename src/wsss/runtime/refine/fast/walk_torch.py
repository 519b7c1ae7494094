"""The walk in plain torch: shifted multiply-adds on flat vectors; works on every device."""

import torch
from torch import Tensor

from ..pairs import PairOffsets, is_empty


class _State:
    """Score maps as vectors, with the views that the shifts need, made once."""

    def __init__(self, values: Tensor, shifts: list[int]) -> None:
        length = values.shape[-1]
        self.values = values
        self.heads = [values[..., : length - shift] for shift in shifts]
        self.tails = [values[..., shift:] for shift in shifts]


class FlatWalk:
    """T of some images of one size, on vectors in which every offset is a constant shift.

    Rows follow each other with a gap of radius - 1 columns between them, which all offsets share.
    Gaps carry neither weight nor score, so nothing is padded again between steps. Every buffer and
    view is made here; the loops only multiply and add in place.
    """

    def __init__(self, scores: Tensor, affinity: Tensor, pairs: PairOffsets) -> None:
        batch, num_maps, self._height, self._width = scores.shape
        self._row = self._width + pairs.radius - 1
        length = self._height * self._row
        planes: list[int] = []
        shifts: list[int] = []
        for plane, (dy, dx) in enumerate(pairs.offsets):
            if not is_empty(pairs.from_cells((dy, dx), (self._height, self._width), "full")):
                planes.append(plane)
                shifts.append(dy * self._row + dx)
        padded = scores.new_zeros((batch, len(planes), self._height, self._row))
        for position, plane in enumerate(planes):
            region = pairs.from_cells(pairs.offsets[plane], (self._height, self._width), "full")
            padded[:, position, *region] = affinity[:, plane, *region].to(scores.dtype)
        flat = padded.view(batch, len(planes), 1, length)
        self._weights = [flat[:, k, :, : length - shift] for k, shift in enumerate(shifts)]
        self._inverse_degrees = self._invert_degrees(batch, length, shifts, scores)
        self._current, self._previous, self._product = (
            _State(scores.new_zeros((batch, num_maps, length)), shifts) for _ in range(3)
        )
        self._cut(self._current.values).copy_(scores)

    def power(self, steps: int) -> Tensor:
        """T^steps times the scores."""
        for _ in range(steps):
            self._multiply()
            torch.mul(self._product.values, self._inverse_degrees, out=self._current.values)
        return self._cut(self._current.values)

    def polynomial(self, coefficients: tuple[float, ...]) -> Tensor:
        """Sum of coefficient j times the j-th Chebyshev polynomial of T, times the scores."""
        result = self._current.values * coefficients[0]
        for order, coefficient in enumerate(coefficients[1:], start=1):
            self._multiply()
            # s_1 = T s_0, then s_{j+1} = 2 T s_j - s_{j-1}; `previous` is 0 before the first.
            factor = 1 if order == 1 else 2
            following = self._previous
            following.values.neg_().addcmul_(
                self._product.values, self._inverse_degrees, value=factor
            )
            self._previous, self._current = self._current, following
            if coefficient:
                result.add_(following.values, alpha=coefficient)
        return self._cut(result)

    def _multiply(self) -> None:
        """product = W current; each weight serves both cells of its pair."""
        source, target = self._current, self._product
        target.values.copy_(source.values)
        for weight, out_head, out_tail, head, tail in zip(
            self._weights, target.heads, target.tails, source.heads, source.tails, strict=True
        ):
            out_head.addcmul_(weight, tail)
            out_tail.addcmul_(weight, head)

    def _invert_degrees(self, batch: int, length: int, shifts: list[int], like: Tensor) -> Tensor:
        # In float64: rounded degrees would let constants drift over hundreds of steps.
        degrees = torch.ones((batch, 1, length), dtype=torch.float64, device=like.device)
        for weight, shift in zip(self._weights, shifts, strict=True):
            degrees[..., : length - shift] += weight
            degrees[..., shift:] += weight
        return degrees.reciprocal_().to(like.dtype)

    def _cut(self, values: Tensor) -> Tensor:
        """(B, n, length) -> its cells (B, n, h, w), a view without the gaps."""
        grid = values.view(*values.shape[:2], self._height, self._row)
        return grid[..., : self._width]
