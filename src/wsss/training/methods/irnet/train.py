"""Stage 3 of IRNet: boundaries and displacements, learnt on pairs of cells that the seeds label."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ....runtime.io.image_io import read_image
from ....runtime.refine.boundary_affinity import path_maxima
from ....runtime.refine.feature_affinity import pair_labels
from ....runtime.refine.geometry import scaled_size
from ...engine.loop import Batch, Objective
from ...engine.networks import NetworkSpec
from ...engine.run import Run
from ..shared.crops import crop_sampler, inside_pixels, nearest_labels, stage_labels
from ..shared.fitting import fit_objective, trained_network
from ..shared.pair_losses import (
    DISPLACEMENT_NAMES,
    PAIR_NAMES,
    affinity_loss_sums,
    displacement_loss_sums,
    irnet_loss,
)
from .network import IRNet, network_pixels
from .recipe import IRNetRecipe


def irnet_network(recipe: IRNetRecipe, num_classes: int) -> NetworkSpec:
    """The network of a recipe."""
    section = recipe.irnet
    stride = section.output_stride or recipe.backbone.output_stride
    arguments = {
        "align_corners": recipe.cam.align == "corners",
        "displacement": section.displacement,
    }
    return NetworkSpec(IRNet, recipe.backbone.name, stride, arguments)


def train_irnet(run: Run, folder: Path, digest: str) -> None:
    """Train IRNet and take its mean displacement; writes `weights.safetensors`."""
    section = run.recipe_of(IRNetRecipe).irnet

    def fit(network: IRNet) -> None:
        fit_objective(run, folder, digest, irnet_objective(run, network), section.train)
        if network.displacement is not None:
            take_mean_displacement(run, network)

    spec = irnet_network(run.recipe_of(IRNetRecipe), len(run.train_set.classes))
    trained_network(IRNet, run, folder, spec, section.train, fit, section.start)


def irnet_objective(run: Run, network: IRNet) -> Objective:
    """Pairs of grid cells in augmented crops, labelled by the seeds."""
    section = run.recipe_of(IRNetRecipe).irnet
    corners = run.recipe.cam.align == "corners"
    radius, borders = section.radius, section.borders

    def reduce(label_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return nearest_labels(label_map, network.feature_stride, corners=corners)

    def terms(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        maps = model(batch["image"], inside_pixels(batch))
        kinds = pair_labels(batch["labels"], radius=radius, borders=borders)
        boundary = maps["boundary"].float().sigmoid()
        affinity = 1 - path_maxima(boundary, radius=radius, borders=borders)
        parts = [affinity_loss_sums(affinity, kinds)]
        if "displacement" in maps:
            parts.append(displacement_loss_sums(maps["displacement"], kinds, radius=radius))
        sums, counts = zip(*parts, strict=True)
        return torch.cat(sums), torch.cat(counts)

    return Objective(
        network,
        len(run.train_set.samples),
        crop_sampler(run, section.train.augmentation, reduce, stage_labels(run, "seeds")),
        terms,
        irnet_loss,
        (*PAIR_NAMES, *(DISPLACEMENT_NAMES if section.displacement else ())),
    )


@torch.no_grad()
def take_mean_displacement(run: Run, network: IRNet) -> None:
    """Set the mean over the training images, so that displacements are 0 in the mean.

    Source: the released code, where images lie at the top left of a square of zeros that counts as
    well. Deviation: none is left out (there: the last incomplete batch), larger ones are not cut.
    The images are those that get labels, as there; here these are the ones that were learnt from.
    """
    network.eval()
    network.mean_displacement.zero_()
    align, stride = run.recipe.cam.align, network.backbone.output_stride
    side = run.recipe_of(IRNetRecipe).irnet.canvas
    rows, columns = scaled_size((side, side), 1.0, align, stride) if side else (0, 0)
    total = torch.zeros(2, dtype=torch.float64, device=run.device)
    count = 0
    samples = run.train_set.samples
    with run.progress.task("mean displacement", len(samples)) as task:
        for sample in samples:
            image = read_image(sample.image_path)
            pixels, inside = network_pixels(network, image, align, run.device)
            height, width = pixels.shape[-2:]
            beyond = (0, max(0, columns - width), 0, max(0, rows - height))
            taps = network.frozen_maps(F.pad(pixels, beyond), F.pad(inside, beyond))
            found = network.displacement_of(taps).double()
            total += found.sum(dim=(0, 2, 3))
            count += found.shape[-2] * found.shape[-1]
            task.advance()
    network.mean_displacement.copy_(total / count)
