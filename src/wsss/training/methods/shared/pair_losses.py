"""Losses on pairs of nearby grid cells: affinities (AffinityNet, IRNet), displacements (IRNet).

They come in two halves, sums and counts, as `losses` says. Sources: AffinityNet (Ahn, Kwak, CVPR
2018), IRNet (Ahn, Cho, Kwak, CVPR 2019), weights and guards of their published code.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ....errors import ShapeError
from ....runtime.refine.pairs import PairKind, PairOffsets
from .losses import at_least_float32

PAIR_NAMES = ("background_pairs", "foreground_pairs", "negative_pairs")
"""What the terms of `affinity_loss_sums` are called in metrics."""
DISPLACEMENT_NAMES = ("background_displacement", "foreground_displacement")
"""Those of `displacement_loss_sums`."""

_KINDS = (PairKind.BACKGROUND, PairKind.FOREGROUND, PairKind.NEGATIVE)
_KIND_WEIGHTS = (0.25, 0.25, 0.5)
_GUARD = 1e-5
"""Keeps logarithms finite and empty kinds at 0; the value of the published code."""
_CPU_BLOCK = 64 * 1024
"""Pairs that are computed together on a CPU, so that their scratch stays in its cache."""


def affinity_loss_sums(affinity: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """Summed losses and numbers of the pairs of each kind: background, foreground, negative.

    Args:
        affinity: (B, K, h, w) in [0, 1]: `exp(-pair_distances(...))` or `1 - path_maxima(...)`.
        kinds: (B, K, h, w) int8 of `PairKind`, from `pair_labels` with the same radius and borders.

    Returns:
        (3,) sums with gradient, (3,) counts without, both of the affinity's dtype (>= float32).

    Raises:
        ShapeError: the shapes differ.
    """
    if affinity.shape != kinds.shape:
        raise ShapeError(
            f"`affinity` is {tuple(affinity.shape)} and `kinds` {tuple(kinds.shape)},"
            " expected the same shape: use one radius and one grid for both"
        )
    return _LogLikelihoods.apply(at_least_float32(affinity), kinds)  # type: ignore[no-untyped-call, no-any-return]


def affinity_loss(sums: Tensor, counts: Tensor) -> Tensor:
    """L_bg / 4 + L_fg / 4 + L_neg / 2, each the mean over its pairs; a kind without pairs adds 0.

    Args:
        sums: (3,) of `affinity_loss_sums`.
        counts: (3,) likewise, added over all processes.
    """
    return (sums / (counts + _GUARD) * sums.new_tensor(_KIND_WEIGHTS)).sum()


def displacement_loss_sums(
    displacement: Tensor, kinds: Tensor, *, radius: int
) -> tuple[Tensor, Tensor]:
    """Summed errors of displacements and their numbers, for background and foreground pairs.

    Cells i and j of one object point to one place where D_i - D_j = x_j - x_i; background is no
    object, there D_i = D_j. Errors are absolute, of dy and dx apart.

    Args:
        displacement: (B, 2, h, w), dy and dx in grid cells.
        kinds: (B, K, h, w) int8 of `PairKind`, from `pair_labels` with this radius.

    Returns:
        (2,) sums with gradient, (2,) counts without: two a pair, one for each of dy and dx.

    Raises:
        ShapeError: the shapes do not fit each other or the radius.
    """
    pairs = PairOffsets(radius)
    batch, channels, *grid = displacement.shape
    if channels != 2 or kinds.shape != (batch, len(pairs), *grid):
        raise ShapeError(
            f"`displacement` is {tuple(displacement.shape)} and `kinds` {tuple(kinds.shape)},"
            f" expected (B, 2, h, w) and (B, {len(pairs)}, h, w)"
        )
    values = at_least_float32(displacement)
    return _DisplacementErrors.apply(values, kinds, pairs)  # type: ignore[no-untyped-call, no-any-return]


def irnet_loss(sums: Tensor, counts: Tensor) -> Tensor:
    """The affinity loss, plus half the mean displacement errors of either kind.

    Args:
        sums: (3,) of `affinity_loss_sums`; where displacements are learnt, also (2,) of
            `displacement_loss_sums`.
        counts: likewise, added over all processes.
    """
    errors = sums[3:] / (counts[3:] + _GUARD)
    return affinity_loss(sums[:3], counts[:3]) + errors.sum() / 2


class _LogLikelihoods(torch.autograd.Function):
    """-log(a) of alike and -log(1 - a) of unlike pairs; the backward pass keeps nothing else."""

    @staticmethod
    def forward(ctx: Any, affinity: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(affinity, kinds)
        sums = affinity.new_zeros(len(_KINDS), dtype=torch.float64)
        counts = torch.zeros_like(sums)
        for values, own in _blocks(affinity, kinds):
            logs = _likelihoods(values, own).log_()
            chosen = torch.empty_like(logs)
            for kind in _KINDS:
                torch.eq(own, kind, out=chosen)
                sums[kind] -= torch.dot(logs, chosen)
                counts[kind] += chosen.sum()
        counts = counts.to(affinity.dtype)
        ctx.mark_non_differentiable(counts)
        return sums.to(affinity.dtype), counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        affinity, kinds = ctx.saved_tensors
        background, foreground, negative = gradient
        by_kind = torch.stack([-background, -foreground, negative, torch.zeros_like(negative)])
        result = torch.empty_like(affinity, memory_format=torch.contiguous_format)
        for values, own, target in _blocks(affinity, kinds, result):
            torch.div(by_kind.index_select(0, own.int()), _likelihoods(values, own), out=target)
        return result, None


def _likelihoods(affinity: Tensor, kinds: Tensor) -> Tensor:
    """a, or 1 - a for pairs of unlike labels, plus the guard; affinities in [0, 1]."""
    # Comparisons into floats and arithmetic: a tenth of the time of masks of bool.
    unlike = torch.eq(kinds, PairKind.NEGATIVE, out=torch.empty_like(affinity))
    return unlike.sub_(affinity).abs_().add_(_GUARD)


def _blocks(*planes: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Equal parts of tensors of one shape, flat; the whole on a GPU, where calls count."""
    flat = [tensor.contiguous().view(-1) for tensor in planes]
    total = flat[0].numel()
    size = _CPU_BLOCK if flat[0].device.type == "cpu" else max(1, total)
    for start in range(0, total, size):
        yield tuple(tensor[start : start + size] for tensor in flat)


class _DisplacementErrors(torch.autograd.Function):
    """Sums of |v_i - v_j|: v is the displacement of background, and of objects the place that it
    points to, x + D, because (x_i + D_i) - (x_j + D_j) = D_i - D_j - (x_j - x_i).

    A sum of absolute differences equals the sum over cells of gradient times value, so that signs
    alone are gone through; they also are the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, displacement: Tensor, kinds: Tensor, pairs: PairOffsets
    ) -> tuple[Tensor, Tensor]:
        height, width = displacement.shape[-2:]
        rows = torch.arange(height, device=displacement.device)[:, None].expand(-1, width)
        columns = torch.arange(width, device=displacement.device).expand(height, -1)
        places = displacement + torch.stack([rows, columns])
        sums, counts, signs = [], [], []
        for kind, values in zip(_KINDS, (displacement, places), strict=False):
            own, count = _summed_signs(values, kinds, kind, pairs)
            signs.append(own)
            sums.append((own.double() * values).sum())
            counts.append(2 * count)
        ctx.save_for_backward(*signs)
        total = torch.stack(counts).to(displacement.dtype)
        ctx.mark_non_differentiable(total)
        return torch.stack(sums).to(displacement.dtype), total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        background, foreground = ctx.saved_tensors
        return gradient[0] * background + gradient[1] * foreground, None, None


def _summed_signs(
    values: Tensor, kinds: Tensor, kind: PairKind, pairs: PairOffsets
) -> tuple[Tensor, Tensor]:
    """Gradient of the sum of |v_i - v_j| over the pairs of a kind, (B, 2, h, w), and their number.

    In flattened maps a shift of cells is one number, so that each offset joins two contiguous runs.
    Where a row is left at its end the kind is NONE.
    """
    result = torch.zeros_like(values, memory_format=torch.contiguous_format)
    count = values.new_zeros((), dtype=torch.float64)
    height, width = values.shape[-2:]
    cells, pulls, planes = values.flatten(2), result.flatten(2), kinds.flatten(2)
    for plane, (dy, dx) in enumerate(pairs.offsets):
        if dy >= height or abs(dx) >= width:
            continue
        shift = dy * width + dx
        first, second = cells[..., :-shift], cells[..., shift:]
        chosen = first.new_empty(len(first), 1, first.shape[-1])
        torch.eq(planes[:, plane : plane + 1, :-shift], kind, out=chosen)
        sign = torch.sub(first, second).sign_()
        pulls[..., :-shift].addcmul_(sign, chosen)
        pulls[..., shift:].addcmul_(sign, chosen, value=-1)
        count += chosen.sum()
    return result, count
