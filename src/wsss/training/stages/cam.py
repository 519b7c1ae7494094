"""Stage 1: a multi-label classifier, and its class activation maps for every training image."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import DataError
from ...runtime.cam import multi_scale_cam, normalise_cam
from ...runtime.geometry import grid_size, image_tensor, resize
from ...runtime.image_io import read_image
from ...runtime.score_maps import ScoreMaps, load_score_maps, save_score_maps
from ..data.image_set import ImageSet, Sample
from ..data.transforms import augment
from ..evaluation import FolderPredictions, evaluate
from ..loop import Batch, Objective, finish, train
from ..losses import classification_loss
from ..models.classifier import CamClassifier
from ..networks import (
    classifier_architecture,
    normalise,
    open_network,
    save_network,
    start_network,
)
from ..recipe import CamSection
from ..run import Run, make_files
from .crops import crop_arrays, network_input
from .head_warmup import warm_up_head


def make_cams(run: Run, folder: Path, digest: str) -> dict[str, float]:
    """Train the classifier, then write `scores/NAME.npz` for every training image."""
    weights = folder / "weights.safetensors"
    figures: dict[str, float] = {}
    if run.cams_path is not None:
        _take_cams(run, folder)
    else:
        if not weights.is_file():
            train_classifier(run, folder, digest)
        finish(folder)
        network, _, _ = open_network(weights, run.device)
        if not isinstance(network, CamClassifier):
            raise DataError(f"'{weights}' holds no classifier")
        write_cams(run, network, folder / "scores")
        if run.val_set is not None:
            figures |= validate_classifier(network, run.val_set, run)
    return figures | measure_scores(run, folder / "scores", run.recipe.cam.threshold)


def train_classifier(run: Run, folder: Path, digest: str) -> None:
    """Multi-label training with image-level labels only; writes `weights.safetensors`."""
    recipe, train_set = run.recipe, run.train_set
    architecture = classifier_architecture(recipe, len(train_set.classes))
    network = start_network(architecture, seed=recipe.seed, weights_path=run.weights_path)
    if not isinstance(network, CamClassifier):
        raise TypeError("the architecture is no classifier")
    section = recipe.cam
    network.dropout.probability = section.dropout
    network.backbone.freeze(section.train.frozen)
    warm_up_head(run, network, section.warmup)
    if not section.skip_training:
        val_set = run.val_set

        def validate() -> dict[str, float]:
            return validate_classifier(network, val_set, run) if val_set else {}

        train(
            classification_objective(run, network, train_set),
            section.train,
            folder,
            seed=recipe.seed,
            identity=digest,
            device=run.device,
            progress=run.progress,
            name="cam",
            validate=validate,
        )
    save_network(
        folder / "weights.safetensors", network, architecture, train_set.classes, recipe.method
    )


def classification_objective(run: Run, network: CamClassifier, train_set: ImageSet) -> Objective:
    """Multi-label classification of augmented crops."""
    settings = run.recipe.cam.train.augmentation
    samples = train_set.samples

    def sample(index: int, generator: np.random.Generator) -> dict[str, NDArray[np.generic]]:
        chosen = samples[index]
        crop = augment(read_image(chosen.image_path), None, settings, generator)
        return crop_arrays(crop) | {"labels": label_vector(chosen, len(train_set.classes))}

    def terms(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model(network_input(network, batch))
        count = torch.tensor([float(len(logits))], device=logits.device)
        return classification_loss(logits.float(), batch["labels"])[None] * count, count

    def loss(sums: Tensor, counts: Tensor) -> Tensor:
        return (sums / counts).sum()

    return Objective(network, len(samples), sample, terms, loss, ("classification",))


def label_vector(sample: Sample, num_classes: int) -> NDArray[np.float32]:
    """(C,) float32 of 0 and 1.

    Raises:
        DataError: the sample has no image-level labels.
    """
    if sample.labels is None:
        raise DataError(
            f"image '{sample.name}' has no image-level labels: add it to the label file "
            "(an empty entry means background only)"
        )
    vector = np.zeros(num_classes, np.float32)
    vector[list(sample.labels)] = 1
    return vector


@torch.no_grad()
def validate_classifier(network: CamClassifier, val_set: ImageSet, run: Run) -> dict[str, float]:
    """Loss and mean average precision (per cent) on images resized to the crop size."""
    logits, labels = [], []
    for sample in val_set.samples:
        if sample.labels is None:
            continue
        image = read_image(sample.image_path)
        logits.append(_logits(network, image, run.recipe.cam, run.device))
        labels.append(torch.from_numpy(label_vector(sample, len(val_set.classes))))
    if not logits:
        return {}
    stacked, truth = torch.cat(logits), torch.stack(labels)
    return {
        "val_classification": float(classification_loss(stacked, truth)),
        "val_map": 100 * mean_average_precision(stacked.numpy(), truth.numpy()),
    }


def _logits(
    network: CamClassifier, image: NDArray[np.uint8], section: CamSection, device: torch.device
) -> Tensor:
    """(1, C) logits of the whole image, resized to a square of the crop size."""
    side = section.train.augmentation.crop_size
    pixels = resize(image_tensor(image, device), (side, side), "reference")
    logits: Tensor = network(normalise(network, pixels))
    return logits.float().cpu()


@torch.no_grad()
def class_probabilities(
    network: CamClassifier, image: NDArray[np.uint8], section: CamSection, device: torch.device
) -> NDArray[np.float32]:
    """(C,) probability that each class is in the image."""
    return _logits(network, image, section, device)[0].sigmoid().numpy()


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


def image_activation(
    network: CamClassifier, image: NDArray[np.uint8], section: CamSection, device: torch.device
) -> Tensor:
    """(C, h, w) multi-scale activation of all classes, not normalised."""

    @torch.no_grad()
    def activation(pixels: Tensor) -> Tensor:
        return network.cam(normalise(network, pixels))

    return multi_scale_cam(
        activation,
        image,
        scales=section.scales,
        flip=section.flip,
        map_stride=section.map_stride,
        stride=network.backbone.output_stride,
        align=section.align,
        device=device,
    )


def write_cams(run: Run, network: CamClassifier, folder: Path) -> None:
    """Multi-scale CAMs of the classes that each training image is labelled with."""

    def make(sample: Sample, image: NDArray[np.uint8], path: Path) -> None:
        activation = image_activation(network, image, run.recipe.cam, run.device)
        size = (image.shape[0], image.shape[1])
        save_score_maps(path, normalise_cam(activation, sample.labels or (), size))

    make_files(
        run,
        "cam maps",
        run.train_set.samples,
        lambda sample: folder / f"{sample.name}.npz",
        lambda sample: read_image(sample.image_path),
        make,
    )


def _take_cams(run: Run, folder: Path) -> None:
    """Score maps of another method take the place of ours; only labelled classes are kept."""
    source = run.cams_path
    if source is None:
        return
    missing = [s.name for s in run.train_set.samples if not (source / f"{s.name}.npz").is_file()]
    if missing:
        raise DataError(
            f"'{source}' lacks score maps for {len(missing)} of {len(run.train_set.samples)} "
            f"images, for example '{missing[0]}.npz'"
        )

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

    make_files(
        run,
        "import of score maps",
        run.train_set.samples,
        lambda sample: folder / "scores" / f"{sample.name}.npz",
        load,
        make,
    )


def measure_scores(run: Run, folder: Path, threshold: float) -> dict[str, float]:
    """mIoU of stored score maps at the recipe's threshold, where the images have masks."""
    subset = run.figures_set
    if subset is None:
        return {}
    report = evaluate(
        FolderPredictions(folder, subset, image_labels_used=True),
        subset,
        run.recipe.data.figures_split,
        threshold=threshold,
        align=run.recipe.cam.align,
        progress=run.progress,
    )
    return {"miou": report.miou, "images": report.images}
