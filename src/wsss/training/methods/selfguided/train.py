"""The self-guided network: it refines its own maps in three steps, and learns what they say."""

import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ....runtime.io.image_io import write_label_map
from ....runtime.io.score_maps import ScoreMaps, save_score_maps
from ....runtime.refine.cam import multi_scale_cam, normalise_cam
from ....runtime.refine.feature_affinity import affinity_from_cosine
from ....runtime.refine.geometry import grid_size, image_tensor, resize, scaled_size
from ....runtime.refine.guided_filter import guided_filter
from ....runtime.refine.pseudo_labels import label_from_scores
from ....runtime.refine.random_walk import propagate
from ...data.image_set import Sample
from ...engine import distributed
from ...engine.loop import Batch, Objective
from ...engine.networks import NetworkSpec, open_network
from ...engine.run import Run
from ...evaluation.miou import FolderPredictions, evaluate
from ..shared.crops import CropSampler, inside_cells, inside_pixels, on_label_grid
from ..shared.fitting import fit_objective, trained_network
from ..shared.losses import classification_loss, segmentation_loss, segmentation_loss_sums
from ..shared.per_image import make_image_files
from ..shared.seed_stage import image_seed
from ..shared.segmenter_stage import label_sampler
from .network import AllMaps, SelfGuidedMaps, SelfGuidedNet
from .recipe import SelfGuidedRecipe, SelfGuidedSection

GUIDE_STRIDE = 2
"""The filter works on the image at half size."""
STEPS = ("step1", "step2", "step3")
LABELS = "labels"
"""Below the stage's folder: `epoch_N/NAME.png`, what epoch N learns."""


def self_guided_network(recipe: SelfGuidedRecipe, num_classes: int) -> NetworkSpec:
    """The network of a recipe."""
    section = recipe.segmenter
    stride = section.output_stride or recipe.backbone.output_stride
    arguments = {
        "num_classes": num_classes,
        "head": section.head,
        "align_corners": recipe.cam.align == "corners",
    }
    return NetworkSpec(SelfGuidedNet, recipe.backbone.name, stride, arguments)


def train_self_guided(run: Run, folder: Path, digest: str) -> None:
    """Alternate: the network makes labels of all training images, then learns them for an epoch.

    Writes `weights.safetensors`, and leaves the labels of the last epoch.
    """
    recipe = run.recipe_of(SelfGuidedRecipe)
    section = recipe.segmenter
    current = folder / LABELS / "epoch_0"

    def label_path(sample: Sample) -> Path:
        return current / f"{sample.name}.png"

    def fit(network: SelfGuidedNet) -> None:
        def prepare(epoch: int) -> None:
            nonlocal current
            if recipe.selfguided.alternate:
                current = folder / LABELS / f"epoch_{epoch}"
            write_round(run, network, current)
            _forget_others(current)

        objective = self_guided_objective(run, network, label_sampler(run, label_path))
        fit_objective(run, folder, digest, objective, section.train, prepare=prepare)

    spec = self_guided_network(recipe, len(run.train_set.classes))
    trained_network(SelfGuidedNet, run, folder, spec, section.train, fit, section.start)


def self_guided_objective(run: Run, network: SelfGuidedNet, sample: CropSampler) -> Objective:
    """Classes of the image, labels of the cells, and maps that agree with intermediate features."""
    recipe = run.recipe_of(SelfGuidedRecipe)
    segmenter, guided, align = recipe.segmenter, recipe.selfguided, recipe.cam.align
    network.dropout.probability = recipe.cam.dropout  # its head is the classifier's

    def terms(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        maps: SelfGuidedMaps = model(batch["image"], inside_pixels(batch))
        present = batch["classes"]
        count = maps.classes.new_tensor([float(len(present))], dtype=torch.float32)
        classes = classification_loss(maps.classes.float(), present)[None] * count
        logits = on_label_grid(maps.logits, batch, align)
        by_label, pixels = segmentation_loss_sums(logits, batch["labels"])
        if guided.affinity_weight:
            inside = inside_cells(batch, network.feature_stride, align)
            apart, cells = agreement_sums(maps, present > 0, inside, guided)
        else:
            apart, cells = classes.detach() * 0, count * 0
        sums = torch.cat([classes, apart, by_label])
        return sums, torch.cat([count, cells, pixels])

    def figures(sums: Tensor, counts: Tensor) -> Tensor:
        means = sums[:2] / counts[:2].clamp(min=1)
        labelled = segmentation_loss(sums[2:], counts[2:], segmenter.balance)
        return torch.cat([means, labelled[None]])

    def loss(sums: Tensor, counts: Tensor) -> Tensor:
        classification, agreement, labelled = figures(sums, counts).unbind()
        return classification + guided.affinity_weight * agreement + labelled

    num_samples = len(run.train_set.samples)
    names = ("classification", "agreement", "labels")
    return Objective(AllMaps(network), num_samples, sample, terms, loss, names, figures=figures)


def agreement_sums(
    maps: SelfGuidedMaps, present: Tensor, inside: Tensor, settings: SelfGuidedSection
) -> tuple[Tensor, Tensor]:
    """How far maps are from what step 2 makes of them: sum of |M - M T| over cells, their number.

    The walked maps are constant in the gradient, which flows through M alone.

    Args:
        present: (B, C) bool; maps of other classes do not count.
        inside: (B, h, w) bool; nor do cells of padding.

    Returns:
        (1,) and (1,).
    """
    counted = (present[:, :, None, None] & inside[:, None]).float()
    activation = maps.activation.float() * counted
    scaled = activation / (activation.amax(dim=(2, 3), keepdim=True) + 1e-5)
    walked = walk_to_alike(scaled.detach(), maps.features.detach() * inside[:, None], settings)
    apart = ((scaled - walked).abs() * counted).sum()
    return apart[None], counted.sum()[None]


@torch.no_grad()
def refined_maps(
    network: SelfGuidedNet,
    image: NDArray[np.uint8],
    classes: tuple[int, ...],
    recipe: SelfGuidedRecipe,
    device: torch.device,
) -> dict[str, ScoreMaps]:
    """Maps of the classes in an image behind each of the `STEPS`, all divided by their maxima.

    A step that the recipe leaves out passes on what it gets; the last maps lie on the image at half
    size.

    Args:
        image: (H, W, 3) uint8 RGB.
        classes: in the image, 0-based.
    """
    section, align = recipe.selfguided, recipe.cam.align
    size = (image.shape[0], image.shape[1])
    at_full_size = scaled_size(size, 1.0, align, network.backbone.output_stride)
    features: dict[tuple[int, ...], Tensor] = {}  # of the full size; one pass gives both

    def activation_of(pixels: Tensor) -> Tensor:
        cam, found = network.activation_and_features(pixels)
        if pixels.shape[-2:] == at_full_size:
            features[at_full_size] = found[:1].float()  # behind it comes the mirror
        return cam

    activation = multi_scale_cam(
        activation_of,
        image,
        scales=section.scales,
        flip=section.flip,
        map_stride=network.feature_stride,
        stride=network.backbone.output_stride,
        align=align,
        device=device,
    )
    first = normalise_cam(activation, classes, size)
    if not len(first.classes):
        return dict.fromkeys(STEPS, first)
    second = third = first
    planes = torch.from_numpy(first.scores).to(device)[None]
    if section.affinity:
        if at_full_size not in features:  # no scale was 1
            activation_of(resize(image_tensor(image, device), at_full_size, align))
        alike = resize(features[at_full_size], first.grid, align)
        planes = walk_to_alike(planes, alike, section)
        second = third = _scaled(planes, first)
    if section.guided:
        grid = grid_size(size, GUIDE_STRIDE, align)
        guide = resize(image_tensor(image, device) / 255, grid, align)
        planes = guided_filter(
            resize(planes, grid, align),
            guide,
            radius=section.guide_radius,
            eps=section.guide_eps,
        )
        third = _scaled(planes.clamp(0, 1), first)
    return dict(zip(STEPS, (first, second, third), strict=True))


def walk_to_alike(maps: Tensor, features: Tensor, settings: SelfGuidedSection) -> Tensor:
    """(B, n, h, w) maps after their walk along cosines of (B, F, h, w) features."""
    affinity = affinity_from_cosine(features, radius=settings.radius, beta=settings.beta)
    return propagate(maps, affinity, radius=settings.radius, steps=settings.steps, method="power")


def _scaled(planes: Tensor, like: ScoreMaps) -> ScoreMaps:
    """(1, n, h, w) as maps of the same classes, each divided by its maximum."""
    scores = normalise_cam(planes[0], range(planes.shape[1]), like.size).scores
    return ScoreMaps(like.classes, scores, like.size)


def write_round(run: Run, network: SelfGuidedNet, folder: Path) -> None:
    """Write `NAME.png`, what the network makes of each training image; finished ones are kept."""
    recipe = run.recipe_of(SelfGuidedRecipe)

    def make(sample: Sample, image: NDArray[np.uint8], path: Path) -> None:
        maps = refined_maps(network, image, sample.labels or (), recipe, run.device)
        write_label_map(path, image_seed(recipe, image, maps[STEPS[-1]], run.device))

    make_image_files(run, f"labels of {folder.name}", folder, ".png", make)


def _forget_others(folder: Path) -> None:
    """Remove the labels of other epochs; what goes on behind a kill needs those alone."""
    if distributed.is_main():
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other)
    distributed.barrier()


def make_self_guided_labels(run: Run, folder: Path, digest: str) -> None:
    """Write maps behind each step (`stepN/NAME.npz`) and label maps (`NAME.png`)."""
    recipe = run.recipe_of(SelfGuidedRecipe)
    network, _ = open_network(SelfGuidedNet, run.weights("segmenter"), run.device)

    def make(sample: Sample, image: NDArray[np.uint8], path: Path) -> None:
        maps = refined_maps(network, image, sample.labels or (), recipe, run.device)
        for step in STEPS:
            place = folder / step / f"{sample.name}.npz"
            place.parent.mkdir(exist_ok=True)
            save_score_maps(place, maps[step])
        label = label_from_scores(
            maps[STEPS[-1]], threshold=recipe.selfguided.threshold, align=recipe.cam.align
        )
        write_label_map(path, label)  # last: a file that is there says that all four are

    make_image_files(run, "labels", folder, ".png", make)


def measure_steps(run: Run, folder: Path) -> dict[str, float]:
    """mIoU of the labels, and of the maps behind each step at one threshold and at their best."""
    subset = run.figures_set
    if subset is None:
        return {}
    recipe = run.recipe_of(SelfGuidedRecipe)
    split, threshold = run.figures_split, recipe.selfguided.threshold
    figures: dict[str, float] = {}
    for step in STEPS:
        report = evaluate(
            FolderPredictions(folder / step, subset, image_labels_used=True),
            subset,
            split,
            threshold=threshold,
            sweep=True,
            align=recipe.cam.align,
            progress=run.progress,
        )
        figures[f"{step}_best_miou"] = report.miou
        at = [row for row in report.sweep if row["threshold"] == threshold]
        figures[f"{step}_miou"] = at[0]["miou"]
    labels = evaluate(FolderPredictions(folder, subset, image_labels_used=True), subset, split)
    return figures | {"miou": labels.miou, "images": labels.images}
