"""Baselines of `wsss bench`: CAM and label of an image as the released codes compute them.

Written anew from their description: AffinityNet (Ahn and Kwak, CVPR 2018) and IRNet (Ahn, Cho and
Kwak, CVPR 2019). Kept as slow as they are, but for what the comparison leaves out: their second
CAM at the size of the image, and files between the stages.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..runtime.io.score_maps import ScoreMaps
from ..runtime.refine.cam import normalise_cam
from ..runtime.refine.geometry import grid_size, resize, scaled_size
from ..runtime.refine.pairs import PairOffsets
from ..runtime.refine.pseudo_labels import WalkSettings, label_from_scores, scores_on_grid
from ..training.backbones.backbone import Normalisation
from ..training.backbones.layers import FrozenBatchNorm2d
from ..training.engine.networks import AnyNetwork, Network
from ..training.methods.contract import AffinitySource
from ..training.methods.shared.classifier import CamClassifier
from ..training.recipe.recipe import WalkRecipe
from ..training.recipe.sections import CamSection
from . import published_operators as published
from . import stages
from .stages import StageClock, charged

DENSE_CELLS = 4000
"""Dense matrices of larger grids are extrapolated on a CPU, where they would take minutes."""


def as_published(network: AnyNetwork) -> AnyNetwork:
    """A copy with batch normalisations as layers of their own, channels before rows."""
    apart = copy.deepcopy(network)
    apart.backbone.memory_format = torch.contiguous_format
    for module in list(apart.modules()):
        for name, child in module.named_children():
            if isinstance(child, FrozenBatchNorm2d):
                setattr(module, name, _batch_norm(child))
    return apart


def _batch_norm(frozen: FrozenBatchNorm2d) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(frozen.weight), frozen.eps, device=frozen.weight.device).eval()
    norm.load_state_dict(frozen.state_dict(), strict=False)  # frozen ones count no updates
    return norm


@torch.no_grad()
def published_activation(
    network: CamClassifier,
    image: NDArray[np.uint8],
    section: CamSection,
    clock: StageClock,
    device: torch.device,
) -> Tensor:
    """(C, h, w) multi-scale activation: images resized by Pillow and normalised by numpy.

    Sizes are ours, so that both forms compute the same amount; under `reference` they are those
    of the released code.

    Args:
        network: of `as_published`.
    """
    size = (image.shape[0], image.shape[1])
    stride = network.backbone.output_stride
    with clock.stage(stages.RESIZE):
        picture = Image.fromarray(image)
        batches = []
        for scale in section.scales:
            height, width = scaled_size(size, scale, section.align, stride)
            scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
            pixels = _normalised(np.asarray(scaled), network.backbone.normalisation)
            both = [pixels, np.flip(pixels, -1)] if section.flip else [pixels]
            batches.append(torch.from_numpy(np.stack(both)))
    outputs = []
    for batch in batches:
        with clock.stage(stages.CAM_NETWORK):
            taps = network.backbone.forward_normalised(batch.to(device))
            maps, _ = network.read_both(taps)
            outputs.append(maps[0] + maps[1].flip(-1) if section.flip else maps[0])
    with clock.stage(stages.MERGE):
        target = grid_size(size, section.map_stride, section.align)
        resized = [resize(maps[None], target, section.align)[0] for maps in outputs]
        return torch.stack(resized).sum(0)


def _normalised(image: NDArray[np.uint8], rule: Normalisation) -> NDArray[np.float32]:
    """(H, W, 3) -> (3, H, W), a channel at a time and by way of float64 as in the released code."""
    channels = image[..., ::-1] if rule.channel_order == "bgr" else image
    result = np.empty(image.shape, np.float32)
    for index, (mean, std) in enumerate(zip(rule.mean, rule.std, strict=True)):
        result[..., index] = (channels[..., index] * rule.scale - mean) / std
    return np.transpose(result, (2, 0, 1))


@torch.no_grad()
def published_label(
    classifier: CamClassifier,
    network: Network,
    source: AffinitySource,
    recipe: WalkRecipe,
    image: NDArray[np.uint8],
    labels: Sequence[int],
    clock: StageClock,
    device: torch.device,
) -> NDArray[np.uint8] | None:
    """(H, W) label map by gathered affinities and a dense matrix that is squared.

    Args:
        classifier, network: of `as_published`.
        source: of kind `features`.
        labels: classes in the image.

    Returns:
        None where the grid is too large for dense matrices: then they were made for a part of it,
        and the clock got their time scaled by N^2, the walk's by N^3.
    """
    activation = published_activation(classifier, image, recipe.cam, clock, device)
    with clock.stage(stages.MERGE):
        maps = normalise_cam(activation, labels, (image.shape[0], image.shape[1]))
    with clock.stage(stages.RESIZE), charged(clock, stages.AFFINITY_NETWORK, [network]):
        features = source.read(network, image, recipe, device)
    if not labels:  # nothing walks; the whole image is background
        return np.zeros(maps.size, np.uint8)
    grid = (features.shape[-2], features.shape[-1])
    settings = source.walk_settings(recipe)
    with clock.stage(stages.LABEL):
        scores = scores_on_grid(maps, grid, settings).to(device)
    factor = _cut(grid, device)
    rows, columns = grid[0] // factor, grid[1] // factor
    ratio = grid[0] * grid[1] / (rows * columns)
    pairs = PairOffsets(settings.radius)
    # `device` as context: the index lists must lie where the features are.
    with clock.stage(stages.AFFINITY, ratio**2), device:
        part = features[0, :, :rows, :columns]
        dense = published.indexed_feature_affinity(part, pairs, settings.beta)
    with clock.stage(stages.WALK, ratio**3):
        walked = _squared_walk(scores[:, :rows, :columns], dense, settings.steps)
    if factor > 1:
        return None
    with clock.stage(stages.LABEL):
        return _label_of_walked(walked, maps, settings)


def _cut(grid: tuple[int, int], device: torch.device) -> int:
    """By how much both sides of the grid are divided."""
    factor = 1
    while device.type == "cpu" and (grid[0] // factor) * (grid[1] // factor) > DENSE_CELLS:
        factor += 1
    return factor


def _squared_walk(scores: Tensor, dense: Tensor, steps: int) -> Tensor:
    """(n, h, w) scores after the walk; other numbers of steps become the next power of 2 below."""
    if steps == 0:
        return scores
    transition = dense.fill_diagonal_(1)
    transition /= transition.sum(0, keepdim=True)
    for _ in range(steps.bit_length() - 1):
        transition = transition @ transition
    return (scores.flatten(1) @ transition).view_as(scores)


def _label_of_walked(walked: Tensor, maps: ScoreMaps, settings: WalkSettings) -> NDArray[np.uint8]:
    """(n, h, w) walked scores -> (H, W) label map, as `walk_scores` and `label_from_scores` end."""
    background: NDArray[np.float32] | None = None
    if settings.background == "power":
        scores, background = walked[1:], walked[0].cpu().numpy()
    else:
        scores = walked / (walked.amax() + 1e-5)
    result = ScoreMaps(maps.classes, scores.cpu().numpy(), maps.size, background)
    return label_from_scores(result, threshold=settings.threshold, align=settings.align)
