"""Seeds: confident foreground, confident background, and IGNORE between them.

Source: the two-sided rule of AffinityNet (Ahn and Kwak, CVPR 2018; two alphas) and IRNet (Ahn,
Cho, Kwak, CVPR 2019; two constants), each labelling passed through the dense CRF.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ConfigError, ShapeError
from ..io.palette import IGNORE_INDEX
from ..io.score_maps import ScoreMaps
from .dense_crf import CrfSettings, DenseCrf, unary_from_labels, unary_from_scores
from .geometry import Align, to_full_size

BackgroundRule = Literal["power", "constant"]
UnarySource = Literal["scores", "labels"]


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
    cams: NDArray[np.float32],
    classes: Sequence[int] | NDArray[np.int64],
    *,
    rule: BackgroundRule = "power",
    foreground: float = 4.0,
    background: float = 32.0,
    unary: UnarySource = "scores",
    certainty: float = 0.7,
    crf: CrfSettings | None = None,
    align: Align = "reference",
    device: torch.device | str = "cpu",
) -> NDArray[np.uint8]:
    """Make the seed of one image: confident foreground and background, and "ignore" between them.

    The CAMs are labelled twice, once with a background score that is hard to win against and once
    with one that is easy to win against. Pixels that are foreground in the first labelling get
    their class, pixels that are background in the second become background.

    Args:
        image: (H, W, 3) uint8 RGB.
        cams: (n, h, w) float32, one map per class in the image, each divided by its maximum.
        classes: (n,) indices of these classes, from 0, background not counted; n may be 0.
        rule: background score: `power` is (1 - highest CAM) ** value, `constant` is the value.
        foreground: the value for confident foreground: an exponent (power), smaller than that of
            the background, or a threshold in (0, 1) (constant), greater than it.
        background: the value for confident background.
        unary: what the dense CRF starts from: `scores`, or `labels` that hold with `certainty`.
        certainty: probability in (0, 1) of a label, for `unary="labels"`.
        crf: settings of the dense CRF that refines both labellings; None for no CRF.
        align: how the grid of CAMs is on the pixels: `reference`, where a cell covers stride x
            stride pixels, or `corners`, where corner cells are on corner pixels.
        device: torch device for the CRF.

    Returns:
        (H, W) uint8: 0 background, class index + 1, 255 undecided. An image without classes is
        background.

    Raises:
        ShapeError: `cams` is not (n, h, w) with n the number of classes, or `image` not (H, W, 3).
        ConfigError: `rule` or `unary` is unknown, or `certainty` is out of its range.

    Source: AffinityNet (Ahn and Kwak, CVPR 2018) and IRNet (Ahn, Cho and Kwak, CVPR 2019).
    """
    for name, value, choices in (
        ("rule", rule, get_args(BackgroundRule)),
        ("unary", unary, get_args(UnarySource)),
    ):
        if value not in choices:
            raise ConfigError(f"unknown `{name}` '{value}': choose one of {', '.join(choices)}")
    if cams.ndim != 3 or len(cams) != len(classes):
        raise ShapeError(
            f"`cams` are {cams.shape}, expected ({len(classes)}, h, w) for {len(classes)} classes"
        )
    if image.ndim != 3 or image.shape[2] != 3:
        raise ShapeError(f"`image` is {image.shape}, expected (H, W, 3)")
    size = (image.shape[0], image.shape[1])
    if not len(classes):
        return np.zeros(size, np.uint8)
    scores = to_full_size(torch.from_numpy(np.asarray(cams, np.float32)), size, align)
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
    label_of = torch.from_numpy(np.concatenate([[0], np.asarray(classes) + 1]).astype(np.uint8))
    is_object = sure_fg != 0
    seed[is_object] = label_of[sure_fg[is_object]]
    return seed.numpy()
