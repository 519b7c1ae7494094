"""Losses of CIAN, in two halves as those of `losses`.

Source: Fan, Zhang, Tan, Song and Xiao, "CIAN: Cross-Image Affinity Net for Weakly Supervised
Semantic Segmentation", AAAI 2020, and its released code.
"""

import torch
from torch import Tensor

from ....runtime.io.palette import IGNORE_INDEX
from ..shared.losses import segmentation_loss, segmentation_loss_sums

SEED_NAMES = ("seeds_self", "seeds_cross")
COMPLETION_NAMES = ("completion_self", "completion_cross")
CIAN_NAMES = (*SEED_NAMES, *COMPLETION_NAMES)


def completion_labels(logits: Tensor, labels: Tensor, inside: Tensor) -> Tensor:
    """What the cross branch says, where it names a class that the labels of the crop have too.

    Args:
        logits: (B, C + 1, h, w) of the cross branch, plane 0 background.
        labels: (B, h, w) integer, IGNORE where undecided.
        inside: (B, h, w) bool, whether a cell shows the image.

    Returns:
        (B, h, w) int64 without gradient, IGNORE everywhere else.
    """
    found = logits.detach().argmax(1)
    occurs = torch.zeros(len(labels), IGNORE_INDEX + 1, dtype=torch.bool, device=labels.device)
    occurs.scatter_(1, labels.flatten(1).long(), True)
    known = occurs.gather(1, found.flatten(1)).view_as(found)
    return found.where(known & inside, IGNORE_INDEX)


def cian_loss_sums(logits: Tensor, labels: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies of both branches against labels, and against what the cross branch says.

    Args:
        logits: (2, B, C + 1, h, w) of the self and of the cross branch.
        labels, inside: see `completion_labels`.

    Returns:
        (4 * (C + 1),) sums with gradient and counts without: of each term of `CIAN_NAMES`, by
        label, see `segmentation_loss_sums`.

    Raises:
        ShapeError, DataError: see `segmentation_loss_sums`.
    """
    parts = [segmentation_loss_sums(branch, labels) for branch in logits]
    completed = completion_labels(logits[1], labels, inside)
    parts += [segmentation_loss_sums(branch, completed) for branch in logits]
    sums, counts = zip(*parts, strict=True)
    return torch.cat(sums), torch.cat(counts)


def cian_terms(sums: Tensor, counts: Tensor, balance: float) -> Tensor:
    """(4,) mean cross-entropies; a term without any pixel is 0.

    What the cross branch says is not evened out: a rare class that it calls too often would weigh
    the more for it, and be called more often still.

    Args:
        sums, counts: of `cian_loss_sums`, added over all processes.
        balance: of the terms against labels, see `segmentation_loss`.
    """
    balances = [balance] * len(SEED_NAMES) + [0.0] * len(COMPLETION_NAMES)
    each = zip(sums.chunk(len(CIAN_NAMES)), counts.chunk(len(CIAN_NAMES)), balances, strict=True)
    return torch.stack([segmentation_loss(*term) for term in each])


def cian_loss(sums: Tensor, counts: Tensor, balance: float, completion: float) -> Tensor:
    """Sum of the terms, those of completion weighted."""
    terms = cian_terms(sums, counts, balance)
    return terms[: len(SEED_NAMES)].sum() + completion * terms[len(SEED_NAMES) :].sum()
