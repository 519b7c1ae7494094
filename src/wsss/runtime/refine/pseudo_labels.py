"""From CAMs and affinities to a pseudo label: background, random walk, argmax.

Source: AffinityNet (Ahn and Kwak, CVPR 2018) and IRNet (Ahn, Cho, Kwak, CVPR 2019), their released
inference code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..io.score_maps import ScoreMaps
from .dense_crf import CrfSettings, DenseCrf, unary_from_scores
from .geometry import Align, reduce_by_mean, resize, to_full_size
from .pairs import Borders
from .random_walk import propagate
from .seeds import BackgroundRule, background_score, full_size_scores


@dataclass(frozen=True)
class WalkSettings:
    """Random walk and background rule, by default those published for AffinityNet.

    See the recipe section `walk` for meanings and ranges.

    Attributes:
        maps_on_grid: CAMs lie on the grid of the walk already, and go into it as they are; only
            under the constant rule.
        damping: CAMs are damped on boundaries before the walk; of IRNet alone.
    """

    beta: float = 8.0
    steps: int = 256
    radius: int = 5
    borders: Borders = "reference"
    tolerance: float = 1e-4
    background: BackgroundRule = "power"
    alpha: float = 16.0
    threshold: float = 0.25
    align: Align = "reference"
    maps_on_grid: bool = False
    damping: bool = True

    @classmethod
    def of_section(
        cls, section: Mapping[str, Any], align: Align, *, maps_on_grid: bool = False
    ) -> "WalkSettings":
        """The settings in a recipe's section `walk`, which a bundle holds as well.

        Raises:
            KeyError: a setting is missing.
        """
        optional = {"align", "maps_on_grid", "damping"}
        own = {field.name for field in fields(cls)} - optional
        values = {name: section[name] for name in own}
        damping = section.get("damping", True)
        return cls(**values, align=align, maps_on_grid=maps_on_grid, damping=damping)


def walk_scores(
    maps: ScoreMaps, affinity: Tensor, settings: WalkSettings, damping: Tensor | None = None
) -> ScoreMaps:
    """Propagate CAMs along affinities.

    Args:
        maps: normalised CAMs of the classes in the image.
        affinity: (1, K, h, w), the exponent applied; the walk runs on their grid.
        damping: (1, 1, h, w) that CAMs are multiplied by before the walk, or None. IRNet: 1 minus
            the boundary.

    Returns:
        Walked maps on that grid. Under the power rule the background walks along and is part of
        the result; under the constant rule scores are divided by their greatest value.
    """
    grid = (affinity.shape[-2], affinity.shape[-1])
    if not len(maps.classes):
        return ScoreMaps(maps.classes, np.zeros((0, *grid), np.float32), maps.size)
    planes = scores_on_grid(maps, grid, settings).to(affinity.device)
    return _maps_on_grid(walk_planes(planes, affinity, settings, damping), maps, settings)


def walk_planes(
    planes: Tensor, affinity: Tensor, settings: WalkSettings, damping: Tensor | None = None
) -> Tensor:
    """(n, h, w) scores >= 0, n may be 0 -> walked, >= 0, not normalised; zeros stay zeros.

    Args:
        affinity, damping: see `walk_scores`.
    """
    walked = propagate(
        planes[None] if damping is None else planes[None] * damping,
        affinity,
        radius=settings.radius,
        steps=settings.steps,
        tolerance=settings.tolerance,
    )
    return walked[0].clamp_(min=0)


def walk_change(maps: ScoreMaps, walked: ScoreMaps, settings: WalkSettings) -> float:
    """Share of the cells of the walk's grid that have another label after the walk than before.

    Both labels come by one rule, that of the walk, so that nothing but the walk counts: scores on
    the grid against the background that walks (power rule), or, divided by their greatest value,
    against the walk's threshold (constant rule). The CAM threshold of a recipe plays no part: with
    it labels would differ where the walk did nothing.

    Args:
        maps: what `walk_scores` took.
        walked: what it gave.

    Returns:
        In [0, 1]; 0 without any class.
    """
    if not len(maps.classes):
        return 0.0
    planes = scores_on_grid(maps, walked.grid, settings)
    before = _maps_on_grid(planes, maps, settings)
    differs = _cell_labels(before, settings) != _cell_labels(walked, settings)
    return float(differs.mean())


def _maps_on_grid(planes: Tensor, maps: ScoreMaps, settings: WalkSettings) -> ScoreMaps:
    """Planes as `scores_on_grid` gives them, walked or not, as maps of the classes."""
    if settings.background == "power":
        scores, background = planes[1:], planes[0].cpu().numpy()
    else:
        scores, background = planes / (planes.amax() + 1e-5), None
    return ScoreMaps(maps.classes, scores.cpu().numpy(), maps.size, background)


def _cell_labels(maps: ScoreMaps, settings: WalkSettings) -> NDArray[np.int64]:
    """(h, w) place of the winner among background and classes; ties go to the background."""
    background = maps.background
    if background is None:
        background = np.full(maps.grid, settings.threshold, np.float32)
    return np.asarray(np.concatenate([background[None], maps.scores]).argmax(0), np.int64)


def scores_on_grid(maps: ScoreMaps, grid: tuple[int, int], settings: WalkSettings) -> Tensor:
    """(n, h, w) scores, preceded by the background plane under the power rule.

    n may be 0 under the constant rule alone: under the other the background is made of scores.
    """
    if settings.background == "constant" and not len(maps.classes):
        return torch.zeros(0, *grid)  # nothing that can be resized
    if settings.align == "corners":
        scores = resize(torch.from_numpy(maps.scores)[None], grid, "corners")[0]
        return _with_background(scores, settings)
    if settings.maps_on_grid:
        return torch.from_numpy(maps.scores)
    full = _with_background(full_size_scores(maps, "reference"), settings)
    stride = -(-maps.size[0] // grid[0])
    reduced = reduce_by_mean(full[None], stride)
    return resize(reduced, grid, "reference")[0]


def _with_background(scores: Tensor, settings: WalkSettings) -> Tensor:
    if settings.background == "constant":
        return scores
    return torch.cat([background_score(scores, "power", settings.alpha), scores])


def label_from_scores(
    maps: ScoreMaps,
    *,
    threshold: float,
    align: Align,
    image: NDArray[np.uint8] | None = None,
    crf: CrfSettings | None = None,
    device: torch.device | str = "cpu",
) -> NDArray[np.uint8]:
    """Label map of an image from its score maps.

    Args:
        maps: CAMs or walked scores.
        threshold: background constant; not used where the maps hold their own background.
        image, crf: photograph (H, W, 3) uint8 and settings of a dense CRF before the argmax.

    Returns:
        (H, W) uint8: 0 background, class index + 1.
    """
    if not len(maps.classes):
        return np.zeros(maps.size, np.uint8)
    stack = score_stack(maps, threshold, align)
    if crf is not None and image is not None:
        stack = DenseCrf(image, crf, device=device).refine(unary_from_scores(stack)).cpu()
    return label_from_stack(stack, maps.classes)


def score_stack(maps: ScoreMaps, threshold: float, align: Align) -> Tensor:
    """(1 + n, H, W): background plane, then the classes, at the size of the image."""
    scores = full_size_scores(maps, align)
    if maps.background is None:
        return torch.cat([background_score(scores, "constant", threshold), scores])
    background = torch.from_numpy(maps.background)[None]
    return torch.cat([to_full_size(background, maps.size, align), scores])


def label_from_stack(stack: Tensor, classes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Argmax of (1 + n, H, W) planes as label map; ties go to the background."""
    label_of = np.concatenate([[0], classes + 1]).astype(np.uint8)
    return np.asarray(label_of[stack.argmax(0).numpy()], np.uint8)
