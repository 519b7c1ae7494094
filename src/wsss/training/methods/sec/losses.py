"""Losses of SEC: seed, expand, constrain (Kolesnikov and Lampert, ECCV 2016).

Like those in `losses`, they come in sums and counts. Cells that show padding take no part; the
published training has none, because it resizes images to the crop.

Source: the paper and the layers of its released code, whose least probability, mean over images
and terms these are. Deviations: the dense CRF is constant in the gradient, where the code's layer
passes on (1 - probability) times it; decays are fitted to the grid; images without a seed, or
without a class, count in no mean, where the code divides by zero.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ....errors import ShapeError
from ....runtime.io.palette import IGNORE_INDEX
from ....runtime.refine.dense_crf import CrfSettings, DenseCrf, unary_from_logits
from ..shared.losses import at_least_float32

LEAST_PROBABILITY = 1e-4
"""Added to every probability, so that logarithms stay finite."""
LARGEST_LOG_RATIO = math.log(20)
"""Of the CRF's probability to the network's, either way."""
PUBLISHED_CELLS = 41 * 41
"""Of the grid that the published decays are meant for."""
Term = tuple[Tensor, Tensor]
"""Sum over images or cells, with gradient, and their number; both of shape ()."""


def floored_probabilities(logits: Tensor) -> Tensor:
    """(B, L, h, w) softmax over L, no probability below about `LEAST_PROBABILITY`."""
    raised = at_least_float32(logits).softmax(1) + LEAST_PROBABILITY
    return raised / raised.sum(1, keepdim=True)


def seed_term(probabilities: Tensor, labels: Tensor) -> Term:
    """Cross entropy at seeds: mean over the seeds of an image, summed over images that have any.

    Args:
        probabilities: (B, C + 1, h, w) of `floored_probabilities`.
        labels: (B, h, w); 0 background, k + 1 for class k, 255 no seed.
    """
    _require_grid(probabilities, labels, "labels")
    each = functional.nll_loss(
        probabilities.log(), labels.long(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    seeds = (labels != IGNORE_INDEX).flatten(1).sum(1)
    return (each.flatten(1).sum(1) / seeds.clamp(min=1)).sum(), _count(seeds > 0, each)


def expansion_terms(
    probabilities: Tensor,
    present: Tensor,
    inside: Tensor,
    *,
    object_decay: float,
    background_decay: float,
) -> tuple[Term, Term, Term]:
    """Global weighted rank pooling of every plane against the classes of its image.

    From the highest probability of a plane down, each next cell counts `decay` times as much; the
    mean so weighted of a class in the image, and that of background, are to be high. Of a class
    that is not in the image the highest probability is to be low.

    Args:
        probabilities: (B, C + 1, h, w) of `floored_probabilities`.
        present: (B, C) bool, the image-level labels.
        inside: (B, h, w) bool, cells that show the image.
        object_decay, background_decay: in (0, 1), for `PUBLISHED_CELLS`; for n cells inside, its
            power `PUBLISHED_CELLS` / n lets the same share of the image count.

    Returns:
        -log of the pooled probability of classes present, of background, and -log(1 - highest) of
        classes absent; each a mean over the classes of an image, summed over images that have such
        classes.
    """
    _require_grid(probabilities, inside, "inside")
    seen = inside.flatten(1).any(1)
    probabilities, present, inside = probabilities[seen], present[seen], inside[seen].flatten(1)
    # Cells outside come last, behind every probability, and weigh nothing.
    ranked = probabilities.flatten(2).masked_fill(~inside[:, None], 0)
    ranked = ranked.sort(dim=2, descending=True).values
    background, objects = ranked[:, 0], ranked[:, 1:]
    weights = _rank_weights(inside, object_decay, ranked.dtype)
    pooled = (objects * weights[:, None]).sum(2)
    weights = _rank_weights(inside, background_decay, ranked.dtype)
    pooled_background = (background * weights).sum(1)
    everywhere = torch.ones_like(pooled_background, dtype=torch.bool)
    return (
        _mean_over_classes(-pooled.log(), present),
        ((-pooled_background.log()).sum(), _count(everywhere, ranked)),
        _mean_over_classes(-torch.log1p(-objects[:, :, 0]), ~present),
    )


def constrain_term(logits: Tensor, images: Tensor, inside: Tensor, settings: CrfSettings) -> Term:
    """Divergence of the network from its own dense CRF: sum over cells of KL(CRF || network).

    Ratios of the two are clipped to 1/20..20 before the logarithm, as in the layer of the released
    code (`T.clip(probs_smooth / probs, 0.05, 20)`): a label on which they disagree more costs what
    the bound costs, and has no gradient.

    Args:
        logits: (B, L, h, w).
        images: (B, h, w, 3) uint8 RGB, reduced to the grid.
        inside: (B, h, w) bool, a rectangle in each image.
        settings: kernels in cells.
    """
    _require_grid(logits, inside, "inside")
    logits = at_least_float32(logits)
    logs = floored_probabilities(logits).log()
    total = logs.new_zeros(())
    for values, own, image, shown in zip(logits.detach(), logs, images, inside, strict=True):
        if not bool(shown.any()):
            continue
        rows, columns = (_span(shown.any(dim)) for dim in (1, 0))
        pixels = np.ascontiguousarray(image[rows, columns].cpu().numpy())
        smooth = DenseCrf(pixels, settings, device=logits.device)
        target = smooth.refine(unary_from_logits(values[:, rows, columns])).to(logs.dtype)
        target = target.clamp(min=LEAST_PROBABILITY)
        target = target / target.sum(0)
        ratios = (target.log() - own[:, rows, columns]).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        total = total + (target * ratios).sum()
    return total, _count(inside, logs)


def join_terms(terms: Sequence[Term]) -> tuple[Tensor, Tensor]:
    """Terms as the sums and counts of `loop.Objective`."""
    return torch.stack([term[0] for term in terms]), torch.stack([term[1] for term in terms])


def weighted_means(sums: Tensor, counts: Tensor, weights: Sequence[float]) -> Tensor:
    """Scalar: the mean of each term times its weight; a term that counts nothing is 0."""
    return (sums / counts.clamp(min=1) * sums.new_tensor(weights)).sum()


def image_on_grid(pixels: Tensor, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Tensor:
    """(B, 3, H, W) uint8 -> (B, h, w, 3) uint8, the pixel of each cell.

    The released code interpolates between neighbouring pixels; it does not average either.
    """
    return pixels[:, :, torch.from_numpy(rows)[:, None], torch.from_numpy(columns)].permute(
        0, 2, 3, 1
    )


def _rank_weights(inside: Tensor, decay: float, dtype: torch.dtype) -> Tensor:
    """(B, N) weights of ranks, 0 beyond the cells inside; each row sums to 1."""
    cells = inside.sum(1, keepdim=True).to(dtype)
    ranks = torch.arange(inside.shape[1], device=inside.device, dtype=dtype)
    weights = decay ** (ranks * (PUBLISHED_CELLS / cells)) * (ranks < cells)
    return weights / weights.sum(1, keepdim=True)


def _mean_over_classes(values: Tensor, chosen: Tensor) -> Term:
    """(B, C) -> the mean over the chosen classes of an image, summed over images with any."""
    numbers = chosen.sum(1)
    means = (values * chosen).sum(1) / numbers.clamp(min=1)
    return means.sum(), _count(numbers > 0, values)


def _count(flags: Tensor, like: Tensor) -> Tensor:
    return flags.sum().to(like.dtype)


def _span(flags: Tensor) -> slice:
    """From the first to the last of a row of flags."""
    places = flags.nonzero()[:, 0]
    return slice(int(places[0]), int(places[-1]) + 1)


def _require_grid(planes: Tensor, cells: Tensor, name: str) -> None:
    expected = (planes.shape[0], *planes.shape[2:])
    if planes.ndim != 4 or tuple(cells.shape) != expected:
        raise ShapeError(
            f"planes are {tuple(planes.shape)} and `{name}` {tuple(cells.shape)}, expected "
            "(B, C + 1, h, w) and (B, h, w)"
        )
