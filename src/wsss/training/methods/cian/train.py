"""Both rounds of CIAN: a segmenter learns seeds, labels the training images, and learns those."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ....runtime.io.image_io import write_label_map
from ...data.image_set import Sample
from ...engine.loop import Batch, Objective
from ...engine.networks import NetworkSpec, open_network
from ...engine.run import Run
from ...evaluation.miou import FolderPredictions, evaluate
from ..shared.crops import inside_cells, inside_pixels, on_label_grid, stage_labels
from ..shared.fitting import fit_objective, trained_network
from ..shared.per_image import make_image_files
from ..shared.segmenter_network import segment_image
from ..shared.segmenter_stage import (
    measure_on_validation,
    segmentation_objective,
    segmenter_crops,
)
from .class_groups import class_groups
from .losses import CIAN_NAMES, cian_loss, cian_loss_sums, cian_terms
from .network import CianSegmenter
from .recipe import CianRecipe, CianRoundSection


def first_network(recipe: CianRecipe, num_classes: int) -> NetworkSpec:
    """The segmenter of the first round."""
    return _network(recipe, recipe.cian, num_classes)


def second_network(recipe: CianRecipe, num_classes: int) -> NetworkSpec:
    """The segmenter of the second round, which has the module of the first."""
    return _network(recipe, recipe.segmenter, num_classes)


def _network(recipe: CianRecipe, section: CianRoundSection, num_classes: int) -> NetworkSpec:
    stride = section.output_stride or recipe.backbone.output_stride
    arguments = {
        "num_classes": num_classes,
        "channels": recipe.cian.channels,
        "self_affinity": recipe.cian.self_affinity,
    }
    return NetworkSpec(CianSegmenter, recipe.backbone.name, stride, arguments)


def train_cian(run: Run, folder: Path, digest: str) -> None:
    """First round, on the seeds; writes `weights.safetensors`."""
    recipe = run.recipe_of(CianRecipe)
    section = recipe.cian

    def fit(network: CianSegmenter) -> None:
        objective = cian_objective(run, network, section, "seeds")
        fit_objective(run, folder, digest, objective, section.train)

    spec = first_network(recipe, len(run.train_set.classes))
    trained_network(CianSegmenter, run, folder, spec, section.train, fit, section.start)


def measure_cian(run: Run, folder: Path) -> dict[str, float]:
    """mIoU of the first round on the validation list, where it has masks."""
    return measure_on_validation(run, folder, run.recipe_of(CianRecipe).cian)


def make_cian_labels(run: Run, folder: Path, digest: str) -> None:
    """Write what the first round says of the training images as pseudo labels (`NAME.png`)."""
    recipe = run.recipe_of(CianRecipe)
    network, _ = open_network(CianSegmenter, run.weights("cian"), run.device)

    def make(sample: Sample, image: NDArray[np.uint8], path: Path) -> None:
        present = (sample.labels or ()) if recipe.labels.present_only else None
        label = segment_image(
            network, image, recipe.cian, recipe.cam.align, run.device, present=present
        )
        write_label_map(path, label)

    make_image_files(run, "labels", folder, ".png", make)


def measure_cian_labels(run: Run, folder: Path) -> dict[str, float]:
    """mIoU of the labels, where there are masks."""
    subset = run.figures_set
    if subset is None:
        return {}
    present_only = run.recipe_of(CianRecipe).labels.present_only
    predictions = FolderPredictions(folder, subset, image_labels_used=present_only)
    report = evaluate(predictions, subset, run.figures_split)
    return {"miou": report.miou, "images": report.images}


def train_cian_segmenter(run: Run, folder: Path, digest: str) -> None:
    """Second round, from the first and on its labels; writes `weights.safetensors`."""
    recipe = run.recipe_of(CianRecipe)
    section = recipe.segmenter

    def fit(network: CianSegmenter) -> None:
        objective = cian_objective(run, network, section, "labels")
        fit_objective(run, folder, digest, objective, section.train)

    spec = second_network(recipe, len(run.train_set.classes))
    start = run.weights("cian")
    trained_network(CianSegmenter, run, folder, spec, section.train, fit, start)


def cian_objective(
    run: Run, network: CianSegmenter, section: CianRoundSection, labels: str
) -> Objective:
    """Augmented crops in groups that share a class, against the label maps of a stage.

    Args:
        labels: the stage that made them.
    """
    align = run.recipe.cam.align
    samples = run.train_set.samples
    sample = segmenter_crops(run, section, stage_labels(run, labels))
    if not section.cross_affinity:
        return segmentation_objective(run, network, section, sample)

    def terms(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        branches = model(batch["image"], inside_pixels(batch), section.group_size)
        logits = torch.stack([on_label_grid(branch, batch, align) for branch in branches])
        inside = inside_cells(batch, section.label_stride, align)
        return cian_loss_sums(logits, batch["labels"], inside)

    def loss(sums: Tensor, counts: Tensor) -> Tensor:
        return cian_loss(sums, counts, section.balance, section.completion)

    def figures(sums: Tensor, counts: Tensor) -> Tensor:
        return cian_terms(sums, counts, section.balance)

    def order(generator: np.random.Generator) -> NDArray[np.int64]:
        steps = len(samples) // section.train.batch_size
        used = steps * section.train.batch_size // section.group_size
        classes = [chosen.labels or () for chosen in samples]
        return class_groups(classes, section.group_size, generator, used=used)

    return Objective(
        network,
        len(samples),
        sample,
        terms,
        loss,
        CIAN_NAMES,
        figures=figures,
        order=order,
        group_size=section.group_size,
    )
