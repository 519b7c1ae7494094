"""Stage 3: AffinityNet, trained on pairs of nearby cells that the seeds call alike or different."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ....runtime.refine.feature_affinity import pair_distances, pair_labels
from ...engine.loop import Batch, Objective
from ...engine.networks import NetworkSpec
from ...engine.run import Run
from ..shared.crops import crop_sampler, inside_pixels, stage_labels, vote_labels
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
        features = model(batch["image"], inside_pixels(batch)).float()
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
