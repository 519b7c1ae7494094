"""The last stage: a segmenter trained on label maps; it needs no image-level labels to predict."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ....errors import ArtifactError
from ....runtime.io.files import atomic_write_bytes
from ....runtime.io.image_io import read_image
from ....runtime.refine.geometry import Align
from ...data.image_set import Sample
from ...engine.loop import Batch, Objective
from ...engine.networks import NetworkSpec, open_network
from ...engine.run import Run
from ...evaluation.miou import EvalReport, evaluate
from ...recipe.recipe import Recipe
from ...recipe.sections import SegmenterSection
from .crops import (
    CropSampler,
    LabelPath,
    crop_sampler,
    inside_pixels,
    nearest_labels,
    on_label_grid,
    stage_labels,
)
from .fitting import fit_objective, trained_network
from .losses import segmentation_loss, segmentation_loss_sums
from .segmenter_network import Segmenter, segment_image

MakeObjective = Callable[[Run, Segmenter, SegmenterSection, CropSampler], Objective]
EVALUATION = "evaluation.json"
"""In a stage's folder: what `evaluate_on_validation` found."""
EVALUATION_FORMAT = 1
"""Raised when the same network would be measured as something else."""


def segmenter_network(recipe: Recipe, num_classes: int) -> NetworkSpec:
    """The segmenter of a recipe."""
    section = recipe.segmenter
    stride = section.output_stride or recipe.backbone.output_stride
    arguments = {"num_classes": num_classes, "head": section.head}
    return NetworkSpec(Segmenter, recipe.backbone.name, stride, arguments)


def train_segmenter(
    run: Run,
    folder: Path,
    digest: str,
    *,
    labels: str,
    make_objective: MakeObjective,
) -> None:
    """Train the segmenter; writes `weights.safetensors`.

    Args:
        labels: stage that has made the label maps to learn from.
        make_objective: what it learns, such as `segmentation_objective`.
    """
    section = run.recipe.segmenter
    sample = label_sampler(run, stage_labels(run, labels))

    def fit(network: Segmenter) -> None:
        objective = make_objective(run, network, section, sample)
        fit_objective(run, folder, digest, objective, section.train)

    spec = segmenter_network(run.recipe, len(run.train_set.classes))
    trained_network(Segmenter, run, folder, spec, section.train, fit, section.start)


def measure_segmenter(run: Run, folder: Path) -> dict[str, float]:
    """mIoU on the images of the validation list that have masks."""
    return measure_on_validation(run, folder, run.recipe.segmenter)


def measure_on_validation(run: Run, folder: Path, section: SegmenterSection) -> dict[str, float]:
    """The same of any stage whose network is a segmenter, used as a section says."""
    report = evaluate_on_validation(run, folder, section)
    return {} if report is None else {"miou": report.miou, "images": report.images}


def evaluate_on_validation(run: Run, folder: Path, section: SegmenterSection) -> EvalReport | None:
    """A stage's segmenter on the images of the validation list that have masks; None without any.

    It takes seconds an image, so the stage, the run's report and a comparison share one
    measurement, which is kept in the stage's folder: of these weights, settings, images and masks.
    """
    masked = [sample for sample in run.val_set.samples if sample.mask] if run.val_set else []
    if run.val_set is None or not masked:
        return None
    images = replace(run.val_set, samples=tuple(masked))
    weights, kept = folder / "weights.safetensors", folder / EVALUATION
    with weights.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    place = [str(images.root), run.recipe.data.val_split, images.digest(masks=True)]
    settings = [section.model_dump(mode="json"), run.recipe.cam.align]
    key = sha256(json.dumps([EVALUATION_FORMAT, digest, place, settings]).encode()).hexdigest()
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
        if known["key"] == key:
            return EvalReport.from_json(known["report"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # not measured yet, or written by another version
    network, _ = open_network(Segmenter, weights, run.device)
    predictions = SegmenterPredictions(network, section, run.recipe.cam.align, run.device)
    report = evaluate(predictions, images, run.recipe.data.val_split, progress=run.progress)
    text = json.dumps({"key": key, "report": report.to_json()})
    with suppress(ArtifactError):  # a finished run may lie where nothing can be written
        atomic_write_bytes(kept, text.encode())
    return report


def label_sampler(run: Run, label_path: LabelPath) -> CropSampler:
    """Those of `segmenter_crops`, and `classes` (C,) of the image."""
    train_set = run.train_set
    crops = segmenter_crops(run, run.recipe.segmenter, label_path)

    def sample(index: int, generator: np.random.Generator) -> dict[str, NDArray[np.generic]]:
        classes = train_set.samples[index].label_vector(len(train_set.classes))
        return crops(index, generator) | {"classes": classes}

    return sample


def segmenter_crops(run: Run, section: SegmenterSection, label_path: LabelPath) -> CropSampler:
    """Crops with `labels` on the grid of `label_stride`."""
    corners = run.recipe.cam.align == "corners"

    def reduce(label_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return nearest_labels(label_map, section.label_stride, corners=corners)

    return crop_sampler(run, section.train.augmentation, reduce, label_path)


def segmentation_objective(
    run: Run, network: Segmenter, section: SegmenterSection, sample: CropSampler
) -> Objective:
    """Cross entropy of augmented crops against label maps."""
    align = run.recipe.cam.align

    def terms(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = on_label_grid(model(batch["image"], inside_pixels(batch)), batch, align)
        return segmentation_loss_sums(logits, batch["labels"])

    def loss(sums: Tensor, counts: Tensor) -> Tensor:
        return segmentation_loss(sums, counts, section.balance)

    return Objective(network, len(run.train_set.samples), sample, terms, loss, ())


class SegmenterPredictions:
    """A segmenter as something to be measured; it sees no image-level labels."""

    image_labels_used = False
    are_labels = True

    def __init__(
        self, network: Segmenter, section: SegmenterSection, align: Align, device: torch.device
    ) -> None:
        self.network, self.section, self.align, self.device = network, section, align, device
        scales = ", ".join(f"{scale:g}" for scale in section.scales)
        flip = " and mirrors" if section.flip else ""
        crf = ", dense CRF" if section.crf.iterations else ""
        self.description = f"segmenter, scales {scales}{flip}{crf}"

    def predict(self, sample: Sample) -> NDArray[np.uint8]:
        """Label map of a sample's image."""
        image = read_image(sample.image_path)
        return segment_image(self.network, image, self.section, self.align, self.device)
