"""The walk in Triton language for CUDA devices: one kernel launch per step.

Run so far in Triton's interpreter on a CPU, and compiled for compute capability 9.0; never run or
timed on a GPU. Triton is imported with the first walk: `is_available` says whether it can be.
"""

from __future__ import annotations  # those of the kernel name `tl` before it is there

import os
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, no_type_check

import torch
from torch import Tensor

from ..pairs import PairOffsets

_BLOCK = 128
"""Cells of one program: one for each thread, of which Triton starts 128 if not told otherwise."""
_MAX_MAPS = 8
"""Maps that share one reading of the weights; more would not stay in registers."""

tl: Any = None
"""`triton.language`, a global because the kernel must see it; set by `_compiled_step`."""


def is_available() -> bool:
    """Whether Triton is installed and finds a CUDA device, or its interpreter was asked for."""
    if find_spec("triton") is None:
        return False
    return torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


class FusedWalk:
    """T of some images of one size, on a CUDA device; the same operator as `FlatWalk`.

    A program computes some neighbouring cells of one image, for up to 8 maps at once. For each
    offset it reads the pairs that lead forward from its cells and those that lead back, so that
    each weight serves both cells of its pair without being stored twice. On CPU tensors it runs
    only in Triton's interpreter (TRITON_INTERPRET=1), slowly.
    """

    def __init__(self, scores: Tensor, affinity: Tensor, pairs: PairOffsets) -> None:
        self._offsets = torch.tensor(pairs.offsets, dtype=torch.int32, device=scores.device)
        self._scores = scores.contiguous()
        self._weights = affinity.to(scores).contiguous()
        self._inverse_degrees = self._invert_degrees()

    def power(self, steps: int) -> Tensor:
        """T^steps times the scores."""
        current, other = self._scores.clone(), torch.zeros_like(self._scores)
        for _ in range(steps):
            self._step(current, other, self._inverse_degrees)
            current, other = other, current
        return current

    def polynomial(self, coefficients: tuple[float, ...]) -> Tensor:
        """Sum of coefficient j times the j-th Chebyshev polynomial of T, times the scores."""
        current, older = self._scores.clone(), torch.zeros_like(self._scores)
        result = current * coefficients[0]
        for order, coefficient in enumerate(coefficients[1:], start=1):
            # s_1 = T s_0, then s_{j+1} = 2 T s_j - s_{j-1}.
            factor = 1.0 if order == 1 else 2.0
            self._step(current, older, self._inverse_degrees, factor, result, coefficient)
            current, older = older, current
        return result

    def _step(
        self,
        current: Tensor,
        older: Tensor,
        inverse_degrees: Tensor,
        factor: float = 1.0,
        result: Tensor | None = None,
        coefficient: float = 0.0,
    ) -> None:
        """older = factor T current - (factor - 1) older; result += coefficient older."""
        batch, num_maps, height, width = current.shape
        maps_at_once = min(_MAX_MAPS, 1 << (num_maps - 1).bit_length())
        grid = (-(-height * width // _BLOCK), batch, -(-num_maps // maps_at_once))
        # Triton launches on the current device, which may be another; -1 (the CPU) changes nothing.
        with torch.cuda.device(current.get_device()):
            _compiled_step()[grid](
                current,
                older,
                older if result is None else result,  # not touched for coefficient 0
                self._weights,
                inverse_degrees,
                height,
                width,
                num_maps,
                factor,
                coefficient,
                self._offsets,
                len(self._offsets),
                maps_at_once,
                _BLOCK,
                enable_fp_fusion=True,  # unsaid, Triton 3.9 warns that its default will change
            )

    def _invert_degrees(self) -> Tensor:
        # In float64: rounded degrees would let constants drift over hundreds of steps.
        batch, _, height, width = self._scores.shape
        ones = self._scores.new_ones((batch, 1, height, width), dtype=torch.float64)
        degrees = torch.zeros_like(ones)
        self._step(ones, degrees, inverse_degrees=ones)
        return degrees.reciprocal_().to(self._scores.dtype)


@lru_cache(maxsize=1)
def _compiled_step() -> Any:
    global tl
    tl = import_module("triton.language")
    # Compiled once for all sizes, not again where one happens to be a multiple of 16.
    sizes = ["height", "width", "num_maps"]
    return import_module("triton").jit(_step_kernel, do_not_specialize=sizes)


@no_type_check
def _step_kernel(
    current,  # (B, n, h, w), read at the cells and their partners
    older,  # (B, n, h, w), read and written at the cells
    result,  # (B, n, h, w), read and written at the cells
    weights,  # (B, K, h, w)
    inverse_degrees,  # (B, 1, h, w)
    height,
    width,
    num_maps,
    factor,
    coefficient: tl.float64,
    offsets,  # (K, 2)
    PLANES: tl.constexpr,
    MAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`FusedWalk._step` for BLOCK cells and MAPS maps of one image."""
    num_cells = height * width
    image = tl.program_id(1).to(tl.int64)  # the planes of all images may pass 2^31 values
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = cell // width, cell % width
    inside = cell < num_cells
    maps = tl.program_id(2) * MAPS + tl.arange(0, MAPS)
    here = (image * num_maps + maps[:, None]) * num_cells + cell[None, :]  # (MAPS, BLOCK)
    wanted = (maps < num_maps)[:, None] & inside[None, :]

    product = tl.load(current + here, mask=wanted, other=0.0)
    # Unrolled fully, radius 10 would take minutes to compile; not at all, loads would wait in turn.
    for plane in tl.range(PLANES, loop_unroll_factor=4):
        dy = tl.load(offsets + 2 * plane)
        dx = tl.load(offsets + 2 * plane + 1)
        shift = dy * width + dx
        pairs = weights + (image * PLANES + plane) * num_cells + cell
        # The pair (cell, cell + offset), then the pair (cell - offset, cell).
        ahead = inside & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
        weight = tl.load(pairs, mask=ahead, other=0.0).to(product.dtype)
        partner = tl.load(current + here + shift, mask=wanted & ahead[None, :], other=0.0)
        product += weight[None, :] * partner
        behind = inside & (row - dy >= 0) & (column - dx >= 0) & (column - dx < width)
        weight = tl.load(pairs - shift, mask=behind, other=0.0).to(product.dtype)
        partner = tl.load(current + here - shift, mask=wanted & behind[None, :], other=0.0)
        product += weight[None, :] * partner

    inverse = tl.load(inverse_degrees + image * num_cells + cell, mask=inside, other=0.0)
    before = tl.load(older + here, mask=wanted, other=0.0)
    following = factor * (product * inverse[None, :]) - (factor - 1.0) * before
    tl.store(older + here, following, mask=wanted)
    if coefficient != 0.0:
        total = tl.load(result + here, mask=wanted, other=0.0)
        tl.store(result + here, total + coefficient * following, mask=wanted)
