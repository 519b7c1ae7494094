"""Stage 3: AffinityNet, trained on pairs of nearby cells that the seeds call alike or different."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ....runtime.refine.feature_affinity import pair_distances, pair_labels
from ....runtime.refine.geometry import Align, image_tensor, pad_to_multiple, resize, scaled_size
from ...engine.loop import Batch, Objective
from ...engine.networks import NetworkSpec, normalise
from ...engine.run import Run
from ..shared.crops import crop_sampler, network_input, stage_labels, vote_labels
from ..shared.fitting import fit_objective, trained_network
from ..shared.pair_losses import PAIR_NAMES, affinity_loss, affinity_loss_sums
from .network import AffinityNet
from .recipe import AffinityNetRecipe


def affinity_network(recipe: AffinityNetRecipe, num_classes: int) -> NetworkSpec:
    """The network of a recipe."""
    stride = recipe.affinity.output_stride or recipe.backbone.output_stride
    arguments = {"align_corners": recipe.cam.align == "corners"}
    return NetworkSpec(AffinityNet, recipe.backbone.name, stride, arguments)


def train_affinity(run: Run, folder: Path, digest: str) -> None:
    """Train AffinityNet; writes `weights.safetensors`."""
    section = run.recipe_of(AffinityNetRecipe).affinity

    def fit(network: AffinityNet) -> None:
        fit_objective(run, folder, digest, affinity_objective(run, network), section.train)

    spec = affinity_network(run.recipe_of(AffinityNetRecipe), len(run.train_set.classes))
    trained_network(AffinityNet, run, folder, spec, section.train, fit, section.start)


def affinity_objective(run: Run, network: AffinityNet) -> Objective:
    """Pairs of grid cells in augmented crops, labelled by the seeds."""
    section = run.recipe_of(AffinityNetRecipe).affinity
    settings = section.train.augmentation
    stride = network.feature_stride
    corners = run.recipe.cam.align == "corners"
    cells = -(-settings.crop_size // stride)

    def reduce(label_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return vote_labels(label_map, stride, (cells, cells), corners=corners)

    def terms(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        features = model(network_input(network, batch)).float()
        radius, borders = section.radius, section.borders
        distances = pair_distances(features, radius=radius, borders=borders)
        kinds = pair_labels(batch["labels"], radius=radius, borders=borders)
        return affinity_loss_sums(torch.exp(-distances), kinds)

    return Objective(
        network,
        len(run.train_set.samples),
        crop_sampler(run, settings, reduce, stage_labels(run, "seeds")),
        terms,
        affinity_loss,
        PAIR_NAMES,
    )


@torch.no_grad()
def image_features(
    network: AffinityNet,
    image: NDArray[np.uint8],
    *,
    scales: tuple[float, ...],
    align: Align,
    device: torch.device,
) -> Tensor:
    """(1, C, h, w) AffinityNet features of an image.

    Under `reference` the image is padded with the mean colour to a multiple of the stride, as in
    the released code; further scales are resized to the grid of scale 1 and averaged.
    """
    size = (image.shape[0], image.shape[1])
    stride = network.feature_stride
    pixels = image_tensor(image, device)
    multiple = network.backbone.output_stride if align == "corners" else stride
    base = scaled_size(size, 1.0, align, stride) if align == "corners" else size
    grid: tuple[int, int] | None = None
    total: Tensor | None = None
    for scale in (1.0, *(value for value in scales if value != 1.0)):
        target = scaled_size(base, scale, align, multiple)
        scaled = normalise(network, resize(pixels, target, align))
        features = network(scaled if align == "corners" else pad_to_multiple(scaled, stride))
        grid = grid or (features.shape[-2], features.shape[-1])
        if scale in scales:
            resized = resize(features.float(), grid, align)
            total = resized if total is None else total + resized
    if total is None:
        raise ValueError("at least one scale is needed")
    return total / len(scales)
