"""Losses of the classifier, AffinityNet, IRNet and the segmenter.

Losses that divide by a number of pairs or pixels come in two halves, sums and counts, so that
several processes can add their counts before dividing: the figure, and the effective batch, are
then those of one process with the whole batch. Under a wrapper that averages gradients over P
processes, divide local sums by global counts and multiply by P.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import DataError, ShapeError
from ..runtime.pairs import Borders, PairKind, PairOffsets, is_empty, shifted
from ..runtime.palette import IGNORE_INDEX

_KINDS = (PairKind.BACKGROUND, PairKind.FOREGROUND, PairKind.NEGATIVE)
_KIND_WEIGHTS = (0.25, 0.25, 0.5)
_GUARD = 1e-5
"""Keeps logarithms finite and empty kinds at 0; the value of the published code."""


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy, mean over classes and images, without class weights.

    Args:
        logits: (B, C).
        labels: (B, C), 1 for a class in the image, 0 for others; unknown is not supported.

    Raises:
        ShapeError: the shapes differ or are not (B, C).
        DataError: a label is neither 0 nor 1.
    """
    if logits.ndim != 2 or logits.shape != labels.shape:
        raise ShapeError(
            f"`logits` are {tuple(logits.shape)} and `labels` {tuple(labels.shape)},"
            " expected both (B, C)"
        )
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise DataError(
            "`labels` hold a value other than 0 and 1: unknown labels are not supported"
        )
    logits = _at_least_float32(logits)
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def affinity_loss_sums(affinity: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """Summed losses and numbers of the pairs of each kind: background, foreground, negative.

    Args:
        affinity: (B, K, h, w) in [0, 1], `exp(-pair_distances(...))`.
        kinds: (B, K, h, w) of `PairKind`, from `pair_labels` with the same radius and borders.

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
    affinity = _at_least_float32(affinity)
    attracting, repelling = affinity + _GUARD, 1 + _GUARD - affinity
    sums, counts = [], []
    for kind in _KINDS:
        chosen = kinds == int(kind)
        likelihood = repelling if kind == PairKind.NEGATIVE else attracting
        sums.append(-likelihood[chosen].log().sum())
        counts.append(chosen.sum())
    return torch.stack(sums), torch.stack(counts).to(affinity.dtype)


def affinity_loss(sums: Tensor, counts: Tensor) -> Tensor:
    """L_bg / 4 + L_fg / 4 + L_neg / 2, each the mean over its pairs; a kind without pairs adds 0.

    Args:
        sums: (3,) of `affinity_loss_sums`.
        counts: (3,) likewise, added over all processes.

    Source: AffinityNet (Ahn, Kwak, CVPR 2018), weights of its published code.
    """
    return (sums / (counts + _GUARD) * sums.new_tensor(_KIND_WEIGHTS)).sum()


def displacement_loss_sums(
    displacement: Tensor, kinds: Tensor, *, radius: int, borders: Borders
) -> tuple[Tensor, Tensor]:
    """Summed errors of displacements and their numbers, for background and foreground pairs.

    Cells i and j of one object point to one place where D_i - D_j = x_j - x_i; background is no
    object, there D_i = D_j. Errors are absolute, of dy and dx apart.

    Args:
        displacement: (B, 2, h, w), dy and dx in grid cells.
        kinds: (B, K, h, w) of `PairKind`, from `pair_labels` with this radius and these borders.

    Returns:
        (2,) sums with gradient, (2,) counts: two a pair, one for each of dy and dx.

    Raises:
        ShapeError: the shapes do not fit each other or the radius.

    Source: IRNet (Ahn, Cho, Kwak, CVPR 2019).
    """
    pairs = PairOffsets(radius)
    batch, _, height, width = displacement.shape
    if displacement.shape[1] != 2 or kinds.shape != (batch, len(pairs), height, width):
        raise ShapeError(
            f"`displacement` is {tuple(displacement.shape)} and `kinds` {tuple(kinds.shape)},"
            f" expected (B, 2, h, w) and (B, {len(pairs)}, h, w)"
        )
    displacement = _at_least_float32(displacement)
    sums = displacement.new_zeros(2)
    for plane, offset in enumerate(pairs.offsets):
        region = pairs.from_cells(offset, (height, width), borders)
        if is_empty(region):
            continue
        rows, columns = region
        to_rows, to_columns = shifted(region, offset)
        found = displacement[..., rows, columns] - displacement[..., to_rows, to_columns]
        step = displacement.new_tensor(offset)[:, None, None]
        each = kinds[:, plane, rows, columns]
        background = (found.abs().sum(1) * (each == PairKind.BACKGROUND)).sum()
        foreground = ((found - step).abs().sum(1) * (each == PairKind.FOREGROUND)).sum()
        sums = sums + torch.stack([background, foreground])
    counts = torch.stack([(kinds == kind).sum() for kind in _KINDS[:2]])
    return sums, 2 * counts.to(displacement.dtype)


def irnet_loss(sums: Tensor, counts: Tensor) -> Tensor:
    """The affinity loss, plus half the mean displacement errors of either kind.

    Args:
        sums: (3,) of `affinity_loss_sums`; where displacements are learnt, also (2,) of
            `displacement_loss_sums`.
        counts: likewise, added over all processes.

    Source: IRNet (Ahn, Cho, Kwak, CVPR 2019); the weights are those of its published code.
    """
    errors = sums[3:] / (counts[3:] + _GUARD)
    return affinity_loss(sums[:3], counts[:3]) + errors.sum() / 2


def segmentation_loss_sums(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy over the pixels of each label, and their numbers.

    Args:
        logits: (B, C + 1, h, w), plane 0 background.
        labels: (B, h, w) integer; 0 background, k + 1 for class k, 255 ignore.

    Returns:
        (C + 1,) sums with gradient, (C + 1,) counts without; both are 0 for absent labels.

    Raises:
        ShapeError: the shapes do not fit each other.
        DataError: a label names no plane.
    """
    if logits.ndim != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ShapeError(
            f"`logits` are {tuple(logits.shape)} and `labels` {tuple(labels.shape)},"
            " expected (B, C + 1, h, w) and (B, h, w)"
        )
    targets, num_planes = labels.long(), logits.shape[1]
    labelled = targets != IGNORE_INDEX
    wrong = labelled & ((targets < 0) | (targets >= num_planes))
    if bool(wrong.any()):
        raise DataError(
            f"`labels` hold {int(targets[wrong][0])}, expected 0 to {num_planes - 1}"
            f" or {IGNORE_INDEX} for ignore"
        )
    logits = _at_least_float32(logits)
    each = functional.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")
    kept = targets[labelled]
    sums = logits.new_zeros(num_planes).index_add(0, kept, each[labelled])
    return sums, torch.bincount(kept, minlength=num_planes).to(logits.dtype)


def segmentation_loss(sums: Tensor, counts: Tensor, balance: float = 0.0) -> Tensor:
    """Mean cross-entropy, weighted by label; 0 where no pixel has a label.

    Args:
        sums: (C + 1,) of `segmentation_loss_sums`.
        counts: (C + 1,) likewise, added over all processes.
        balance: in [0, 1]; a pixel weighs (pixels of its label in the batch) ** -balance. At 0 all
            labelled pixels weigh alike, at 1 all labels that occur, so that background does not
            drown small and rare objects.
    """
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -balance, 0)
    return (weights * sums).sum() / (weights * counts).sum().clamp(min=torch.finfo(sums.dtype).tiny)


def _at_least_float32(values: Tensor) -> Tensor:
    # The guards vanish in half precision.
    return values if values.dtype == torch.float64 else values.float()
