"""The last stage: a segmenter trained on label maps; it needs no image-level labels to predict."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import ArtifactError
from ...runtime.dense_crf import DenseCrf, unary_from_logits
from ...runtime.files import atomic_write_bytes
from ...runtime.geometry import Align, image_tensor, resize, scaled_size
from ...runtime.image_io import read_image, read_label_map
from ..data.image_set import Sample
from ..data.transforms import augment
from ..evaluation import EvalReport, evaluate
from ..loop import Batch, Objective
from ..losses import segmentation_loss, segmentation_loss_sums
from ..models.segmenter import Segmenter
from ..networks import normalise, open_as, segmenter_architecture
from ..recipe import PlainSegmenterRecipe
from ..run import Run
from ..sections.segmenter import SegmenterSection
from .crops import crop_arrays, nearest_labels, network_input
from .fitting import fit_objective, trained_network
from .sec import sec_objective

EVALUATION = "evaluation.json"
"""In a stage's folder: what `evaluate_on_validation` found."""
EVALUATION_FORMAT = 1
"""Raised when the same network would be measured as something else."""

LabelSampler = Callable[[int, np.random.Generator], dict[str, NDArray[np.generic]]]


def train_segmenter(run: Run, folder: Path, digest: str, labels: str = "labels") -> None:
    """Train the segmenter; writes `weights.safetensors`.

    Args:
        labels: stage that has made the label maps to learn from.
    """
    section = run.recipe_of(PlainSegmenterRecipe).segmenter
    sample = label_sampler(run, lambda image: run.folder / labels / f"{image.name}.png")
    objective_of = sec_objective if section.loss == "sec" else segmentation_objective

    def fit(network: Segmenter) -> None:
        fit_objective(run, folder, digest, objective_of(run, network, sample), section.train)

    architecture = segmenter_architecture(run.recipe, len(run.train_set.classes))
    trained_network(Segmenter, run, folder, architecture, section.train, fit, section.start)


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
    network, _ = open_as(Segmenter, weights, run.device)
    predictions = SegmenterPredictions(network, section, run.recipe.cam.align, run.device)
    report = evaluate(predictions, images, run.recipe.data.val_split, progress=run.progress)
    text = json.dumps({"key": key, "report": report.to_json()})
    with suppress(ArtifactError):  # a finished run may lie where nothing can be written
        atomic_write_bytes(kept, text.encode())
    return report


def label_sampler(run: Run, label_path: Callable[[Sample], Path]) -> LabelSampler:
    """What `Objective.sample` is for a segmenter.

    Args:
        label_path: of the label map of an image.

    Returns:
        Arrays of a crop, `labels` (h, w) on the grid of `label_stride`, `classes` (C,) of the
        image.
    """
    section, train_set = run.recipe.segmenter, run.train_set
    settings = section.train.augmentation
    corners = run.recipe.cam.align == "corners"

    def sample(index: int, generator: np.random.Generator) -> dict[str, NDArray[np.generic]]:
        chosen = train_set.samples[index]
        label_map = read_label_map(label_path(chosen))
        crop = augment(read_image(chosen.image_path), label_map, settings, generator)
        arrays = crop_arrays(crop)
        full = np.asarray(arrays.pop("label_map"), np.uint8)
        return arrays | {
            "labels": nearest_labels(full, section.label_stride, corners=corners),
            "classes": chosen.label_vector(len(train_set.classes)),
        }

    return sample


def segmentation_objective(run: Run, network: Segmenter, sample: LabelSampler) -> Objective:
    """Cross entropy of augmented crops against label maps."""
    section = run.recipe.segmenter
    align = run.recipe.cam.align

    def terms(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model(network_input(network, batch)).float()
        target = (batch["labels"].shape[-2], batch["labels"].shape[-1])
        return segmentation_loss_sums(resize(logits, target, align), batch["labels"])

    def loss(sums: Tensor, counts: Tensor) -> Tensor:
        return segmentation_loss(sums, counts, section.balance)

    return Objective(network, len(run.train_set.samples), sample, terms, loss, ())


@torch.no_grad()
def segment_logits(
    network: Segmenter,
    image: NDArray[np.uint8],
    section: SegmenterSection,
    align: Align,
    device: torch.device,
) -> Tensor:
    """(C + 1, H, W) logits of an image, averaged over scales and mirrors."""
    size = (image.shape[0], image.shape[1])
    pixels = image_tensor(image, device)
    total: Tensor | None = None
    for scale in section.scales:
        target = scaled_size(size, scale, align, network.backbone.output_stride)
        scaled = resize(pixels, target, align)
        batch = torch.cat([scaled, scaled.flip(-1)]) if section.flip else scaled
        logits = network(normalise(network, batch)).float()
        if section.flip:
            logits = (logits[:1] + logits[1:].flip(-1)) / 2
        full = resize(logits, size, align)[0]
        total = full if total is None else total + full
    if total is None:
        raise ValueError("at least one scale is needed")
    return total / len(section.scales)


def segment_image(
    network: Segmenter,
    image: NDArray[np.uint8],
    section: SegmenterSection,
    align: Align,
    device: torch.device,
    present: Sequence[int] | None = None,
) -> NDArray[np.uint8]:
    """(H, W) label map; the argmax of the logits, behind the optional dense CRF.

    Args:
        present: the only classes that compete; by default all do.
    """
    planes = segment_logits(network, image, section, align, device)
    classes = range(network.num_classes) if present is None else present
    labels = torch.tensor([0, *(index + 1 for index in classes)], device=planes.device)
    planes = planes[labels]
    crf = section.crf.settings()
    if crf is not None:
        planes = DenseCrf(image, crf, device=device).refine(unary_from_logits(planes))
    return labels[planes.argmax(0)].to(torch.uint8).cpu().numpy()


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
