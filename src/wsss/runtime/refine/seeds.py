"""Seeds: confident foreground, confident background, and IGNORE between them.

Source: the two-sided rule of AffinityNet (Ahn and Kwak, CVPR 2018; two alphas) and IRNet (Ahn,
Cho, Kwak, CVPR 2019; two constants), each labelling passed through the dense CRF.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..io.palette import IGNORE_INDEX
from ..io.score_maps import ScoreMaps
from .dense_crf import CrfSettings, DenseCrf, unary_from_labels, unary_from_scores
from .geometry import Align, to_full_size

BackgroundRule = Literal["power", "constant"]


def background_score(scores: Tensor, rule: BackgroundRule, value: float) -> Tensor:
    """Plane that competes with class scores in the argmax.

    Args:
        scores: (n, H, W) in [0, 1]; n may be 0.
        rule: power: (1 - max score) ** value; constant: value everywhere.

    Returns:
        (1, H, W).
    """
    if rule == "constant":
        return scores.new_full((1, *scores.shape[1:]), value)
    best = scores.amax(0, keepdim=True) if len(scores) else scores.new_zeros(1, *scores.shape[1:])
    return (1 - best).clamp(0, 1) ** value


def full_size_scores(maps: ScoreMaps, align: Align) -> Tensor:
    """(n, H, W) float32 scores at the size of the image."""
    return to_full_size(torch.from_numpy(maps.scores), maps.size, align)


def make_seed(
    image: NDArray[np.uint8],
    maps: ScoreMaps,
    *,
    rule: BackgroundRule,
    foreground: float,
    background: float,
    unary: Literal["scores", "labels"],
    certainty: float,
    crf: CrfSettings | None,
    align: Align,
    device: torch.device | str = "cpu",
) -> NDArray[np.uint8]:
    """Two-sided seed of one image.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: normalised CAMs of the classes in the image.
        foreground, background: alphas or constants of the two labellings.
        unary: CRF from the scores, or from their argmax held with `certainty`.

    Returns:
        (H, W) uint8: class index + 1, 0 background, 255 undecided. An image without any class is
        background as a whole.
    """
    if not len(maps.classes):
        return np.zeros(maps.size, np.uint8)
    scores = full_size_scores(maps, align)
    stacks = [
        torch.cat([background_score(scores, rule, value), scores])
        for value in (foreground, background)
    ]
    num_labels = len(scores) + 1
    if crf is None:
        sure_fg, sure_bg = (stack.argmax(0) for stack in stacks)
    else:
        unaries = [
            unary_from_scores(stack)
            if unary == "scores"
            else unary_from_labels(stack.argmax(0), num_labels, certainty)
            for stack in stacks
        ]
        refined = DenseCrf(image, crf, device=device).refine_many(unaries)
        sure_fg, sure_bg = (planes.argmax(0).cpu() for planes in refined)
    seed = torch.full(sure_fg.shape, IGNORE_INDEX, dtype=torch.uint8)
    seed[sure_bg == 0] = 0
    label_of = torch.from_numpy(np.concatenate([[0], maps.classes + 1]).astype(np.uint8))
    is_object = sure_fg != 0
    seed[is_object] = label_of[sure_fg[is_object]]
    return seed.numpy()
