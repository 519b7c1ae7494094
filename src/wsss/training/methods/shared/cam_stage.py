"""Stage 1: a multi-label classifier, and its class activation maps for every training image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ....errors import DataError
from ....runtime.io.image_io import read_image
from ....runtime.io.score_maps import ScoreMaps, load_score_maps, save_score_maps
from ....runtime.refine.cam import normalise_cam
from ....runtime.refine.geometry import grid_size, image_tensor, resize
from ...data.image_set import ImageSet, Sample
from ...data.transforms import augment
from ...engine.loop import Batch, Objective
from ...engine.networks import NetworkSpec, open_network
from ...engine.run import Run
from ...evaluation.miou import FolderPredictions, evaluate
from ...recipe.recipe import Recipe
from ...recipe.sections import HeadWarmup
from .classifier import CamClassifier, image_activation, image_logits
from .crops import crop_arrays, inside_pixels
from .fitting import fit_objective, trained_network
from .losses import classification_loss
from .per_image import make_files, make_image_files


def cam_network(recipe: Recipe, num_classes: int) -> NetworkSpec:
    """The classifier of a recipe."""
    backbone = recipe.backbone
    arguments = {"num_classes": num_classes}
    return NetworkSpec(CamClassifier, backbone.name, backbone.output_stride, arguments)


ClassLoss = Callable[[Tensor, Tensor], Tensor]
"""(B, C) logits and (B, C) labels of 0 and 1 -> scalar, a mean over images."""


def usual_loss(recipe: Recipe) -> ClassLoss:
    """What the classifier of every published method learns by."""
    return classification_loss


def make_cams(
    run: Run, folder: Path, digest: str, make_loss: Callable[[Any], ClassLoss] = usual_loss
) -> None:
    """Train the classifier, then write `scores/NAME.npz` for every training image.

    Args:
        make_loss: gives the classifier's loss for a recipe.
    """
    if run.cams_path is not None:
        _take_cams(run, run.cams_path, folder)
    else:
        network = train_classifier(run, folder, digest, make_loss(run.recipe))
        write_cams(run, network, folder / "scores")


def measure_cams(run: Run, folder: Path) -> dict[str, float]:
    """Classifier on the validation list; mIoU of the CAMs where there are masks."""
    figures: dict[str, float] = {}
    if run.weights("cam").is_file() and run.val_set is not None:
        network, _ = open_network(CamClassifier, run.weights("cam"), run.device)
        figures |= validate_classifier(network, run.val_set, run)
    return figures | measure_scores(run, folder / "scores", run.recipe.cam.threshold)


def train_classifier(
    run: Run, folder: Path, digest: str, loss: ClassLoss = classification_loss
) -> CamClassifier:
    """Multi-label training with image-level labels only; writes `weights.safetensors`."""
    section, train_set, val_set = run.recipe.cam, run.train_set, run.val_set

    def fit(network: CamClassifier) -> None:
        def validate() -> dict[str, float]:
            return validate_classifier(network, val_set, run) if val_set else {}

        network.dropout.probability = section.dropout
        warm_up_head(run, network, section.warmup)
        if not section.skip_training:
            objective = classification_objective(run, network, train_set, loss)
            fit_objective(run, folder, digest, objective, section.train, validate)

    spec = cam_network(run.recipe, len(train_set.classes))
    return trained_network(CamClassifier, run, folder, spec, section.train, fit)


def classification_objective(
    run: Run,
    network: CamClassifier,
    train_set: ImageSet,
    loss: ClassLoss = classification_loss,
) -> Objective:
    """Multi-label classification of augmented crops."""
    settings = run.recipe.cam.train.augmentation
    samples = train_set.samples

    def sample(index: int, generator: np.random.Generator) -> dict[str, NDArray[np.generic]]:
        chosen = samples[index]
        crop = augment(read_image(chosen.image_path), None, settings, generator)
        return crop_arrays(crop) | {"labels": chosen.label_vector(len(train_set.classes))}

    def terms(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model(batch["image"], inside_pixels(batch))
        count = torch.tensor([float(len(logits))], device=logits.device)
        return loss(logits.float(), batch["labels"])[None] * count, count

    def mean(sums: Tensor, counts: Tensor) -> Tensor:
        return (sums / counts).sum()

    return Objective(network, len(samples), sample, terms, mean, ("classification",))


@torch.no_grad()
def validate_classifier(network: CamClassifier, val_set: ImageSet, run: Run) -> dict[str, float]:
    """Loss and mean average precision (per cent) on images resized to the crop size."""
    logits, labels = [], []
    for sample in val_set.samples:
        if sample.labels is None:
            continue
        image = read_image(sample.image_path)
        logits.append(image_logits(network, image, run.recipe.cam, run.device))
        labels.append(torch.from_numpy(sample.label_vector(len(val_set.classes))))
    if not logits:
        return {}
    stacked, truth = torch.cat(logits), torch.stack(labels)
    return {
        "val_classification": float(classification_loss(stacked, truth)),
        "val_map": 100 * mean_average_precision(stacked.numpy(), truth.numpy()),
    }


def mean_average_precision(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """Mean over the classes that occur of the area under precision at each hit, in [0, 1].

    Args:
        scores, labels: (images, C).
    """
    precisions = []
    for score, label in zip(scores.T, labels.T, strict=True):
        hits = label[np.argsort(-score, kind="stable")] > 0
        if hits.any():
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            precisions.append(float(precision[hits].mean()))
    return float(np.mean(precisions)) if precisions else float("nan")


def write_cams(run: Run, network: CamClassifier, folder: Path) -> None:
    """Multi-scale CAMs of the classes that each training image is labelled with."""

    def make(sample: Sample, image: NDArray[np.uint8], path: Path) -> None:
        activation = image_activation(network, image, run.recipe.cam, run.device)
        size = (image.shape[0], image.shape[1])
        save_score_maps(path, normalise_cam(activation, sample.labels or (), size))

    make_image_files(run, "cam maps", folder, ".npz", make)


def _take_cams(run: Run, source: Path, folder: Path) -> None:
    """Score maps of another method take the place of ours; only labelled classes are kept."""

    def load(sample: Sample) -> ScoreMaps:
        image = read_image(sample.image_path)
        size = (image.shape[0], image.shape[1])
        return load_score_maps(source / f"{sample.name}.npz", size)

    def make(sample: Sample, maps: ScoreMaps, path: Path) -> None:
        if (
            maps.classes.max(initial=-1) >= len(run.train_set.classes)
            or maps.classes.min(initial=0) < 0
        ):
            raise DataError(
                f"score maps of '{sample.name}' name class {maps.classes.max()}, the class list "
                f"has 0..{len(run.train_set.classes) - 1}"
            )
        if sample.labels is not None:
            maps = maps.select(np.asarray(sample.labels, np.int64))
        peak = maps.scores.max(axis=(1, 2), keepdims=True, initial=0)
        scaled = maps.scores / np.where(peak > 1, peak, 1)
        section = run.recipe.cam
        grid = grid_size(maps.size, section.map_stride, section.align)
        if len(scaled) and scaled.shape[1:] != grid:
            planes = torch.from_numpy(scaled.astype(np.float32))[None]
            scaled = resize(planes, grid, section.align)[0].numpy()
        save_score_maps(path, ScoreMaps(maps.classes, scaled.astype(np.float32), maps.size))

    make_files(run, "import of score maps", folder / "scores", ".npz", load, make)


def measure_scores(run: Run, folder: Path, threshold: float) -> dict[str, float]:
    """mIoU of stored score maps at the recipe's threshold, where the images have masks."""
    subset = run.figures_set
    if subset is None:
        return {}
    report = evaluate(
        FolderPredictions(folder, subset, image_labels_used=True),
        subset,
        run.figures_split,
        threshold=threshold,
        align=run.recipe.cam.align,
        progress=run.progress,
    )
    return {"miou": report.miou, "images": report.images}


def warm_up_head(run: Run, network: CamClassifier, settings: HeadWarmup) -> None:
    """Fit the head to pooled features of every image and its mirror by full-batch AdamW.

    The loss is convex in the head, so the result depends little on the schedule; it is the same
    on every process, hence nothing is exchanged.
    """
    if settings.epochs == 0:
        return
    network.to(run.device).eval()
    features, labels = pooled_features(run, network, run.train_set, settings)
    torch.manual_seed(run.recipe.seed)
    head = network.classifier
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    with run.progress.task("head warm-up", settings.epochs) as task:
        for _ in range(settings.epochs):
            optimizer.zero_grad(set_to_none=True)
            dropped = F.dropout(features, network.dropout.probability)
            loss = classification_loss(network.classify_pooled(dropped), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            task.advance(loss=loss.item())


@torch.no_grad()
def pooled_features(
    run: Run, network: CamClassifier, images: ImageSet, settings: HeadWarmup
) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, F) features and (n, C) labels, n = images x sizes x 2 mirrors."""
    features, labels = [], []
    with run.progress.task("frozen features", len(images.samples)) as task:
        for sample in images.samples:
            pixels = image_tensor(read_image(sample.image_path), run.device)
            label = torch.from_numpy(sample.label_vector(len(images.classes)))
            for side in settings.image_sizes:
                square = resize(pixels, (side, side), "reference")
                pair = torch.cat([square, square.flip(-1)])
                features.append(network.pooled_features(pair))
                labels += [label, label]
            task.advance()
    return torch.cat(features), torch.stack(labels).to(run.device)
