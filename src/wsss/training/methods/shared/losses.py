"""Losses of the classifier and the segmenter; those of AffinityNet and IRNet are `pair_losses`.

Losses that divide by a number of pairs or pixels come in two halves, sums and counts, so that
several processes can add their counts before dividing: the figure, and the effective batch, are
then those of one process with the whole batch. Under a wrapper that averages gradients over P
processes, divide local sums by global counts and multiply by P.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ....errors import DataError, ShapeError
from ....runtime.io.palette import IGNORE_INDEX


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
    logits = at_least_float32(logits)
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


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
    logits = at_least_float32(logits)
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


def at_least_float32(values: Tensor) -> Tensor:
    """Values in the precision of losses: the small numbers in them vanish in half precision."""
    return values if values.dtype == torch.float64 else values.float()
