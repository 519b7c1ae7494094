"""The stage of pseudo labels: CAMs walk randomly along the affinities that a network gives."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....runtime.io.image_io import write_label_map
from ....runtime.io.score_maps import ScoreMaps, load_score_maps, save_score_maps
from ....runtime.refine.boundary_walk import STRIDE, boundary_affinities
from ....runtime.refine.feature_affinity import affinity_from_features
from ....runtime.refine.pseudo_labels import WalkSettings, label_from_scores, walk_scores
from ...data.image_set import Sample
from ...engine.networks import open_as
from ...engine.run import Run
from ...evaluation.miou import FolderPredictions, evaluate
from ...recipe.load import IRNetRecipe, WalkRecipe
from ..affinitynet.network import AffinityNet
from ..affinitynet.train import image_features
from ..irnet.network import IRNet
from ..irnet.train import image_boundary
from .affinity_network import AffinityNetwork
from .cam_stage import measure_scores
from .per_image import make_image_files

Affinities = tuple[Tensor, Tensor | None]
"""(1, K, h, w) with the exponent applied, and (1, 1, h, w) that CAMs are multiplied by, or None."""


def walk_settings(recipe: WalkRecipe) -> WalkSettings:
    """The recipe's walk as the runtime takes it."""
    section = recipe.walk
    irnet = recipe if isinstance(recipe, IRNetRecipe) else None
    return WalkSettings(
        beta=section.beta,
        steps=section.steps,
        radius=section.radius,
        borders=section.borders,
        tolerance=section.tolerance,
        background=section.background,
        alpha=section.alpha,
        threshold=section.threshold,
        align=recipe.cam.align,
        maps_on_grid=irnet is not None and irnet.cam.map_stride == STRIDE,
        damping=irnet is None or irnet.walk.damping,
    )


def make_labels(run: Run, folder: Path, digest: str) -> None:
    """Write walked score maps (`scores/NAME.npz`) and pseudo labels (`NAME.png`)."""
    recipe = run.recipe_of(WalkRecipe)
    network, _ = open_as(AffinityNetwork, run.weights(recipe.affinity_stage), run.device)
    _walk(run, network, recipe, folder / "scores")
    _write_labels(run, recipe, folder)


def measure_labels(run: Run, folder: Path) -> dict[str, float]:
    """mIoU of walked scores (`walk_miou`) and of the labels, where there are masks."""
    subset = run.figures_set
    if subset is None:
        return {}
    walked = measure_scores(run, folder / "scores", run.recipe_of(WalkRecipe).walk.threshold)
    predictions = FolderPredictions(folder, subset, image_labels_used=True)
    report = evaluate(predictions, subset, run.figures_split)
    figures = {f"walk_{key}": value for key, value in walked.items()}
    return figures | {"miou": report.miou, "images": report.images}


def walked_scores(
    network: AffinityNetwork,
    image: NDArray[np.uint8],
    maps: ScoreMaps,
    recipe: WalkRecipe,
    device: torch.device,
) -> ScoreMaps:
    """CAMs of one image after the random walk."""
    affinity, damping = image_affinity(network, image, recipe, device)
    return walk_scores(maps, affinity, walk_settings(recipe), damping)


def image_affinity(
    network: AffinityNetwork, image: NDArray[np.uint8], recipe: WalkRecipe, device: torch.device
) -> Affinities:
    """Along which the scores of an image walk."""
    walk = recipe.walk
    if isinstance(network, IRNet):
        boundary = image_boundary(network, image, align=recipe.cam.align, device=device)
        return boundary_affinities(boundary, walk_settings(recipe))
    if not isinstance(network, AffinityNet):
        raise TypeError(f"no affinities are known of a {type(network).__name__}")
    features = affinity_features(network, image, recipe, device)
    affinity = affinity_from_features(
        features, radius=walk.radius, beta=walk.beta, borders=walk.borders
    )
    return affinity, None


def affinity_features(
    network: AffinityNet, image: NDArray[np.uint8], recipe: WalkRecipe, device: torch.device
) -> Tensor:
    """(1, C, h, w) features that AffinityNet's affinities of an image are made of."""
    return image_features(
        network, image, scales=recipe.walk.scales, align=recipe.cam.align, device=device
    )


def _walk(run: Run, network: AffinityNetwork, recipe: WalkRecipe, folder: Path) -> None:
    cams = run.folder / "cam" / "scores"

    def make(sample: Sample, image: NDArray[np.uint8], path: Path) -> None:
        maps = load_score_maps(cams / f"{sample.name}.npz")
        save_score_maps(path, walked_scores(network, image, maps, recipe, run.device))

    make_image_files(run, "walk", folder, ".npz", make)


def _write_labels(run: Run, recipe: WalkRecipe, folder: Path) -> None:
    section = recipe.walk

    def make(sample: Sample, image: NDArray[np.uint8], path: Path) -> None:
        labels = label_from_scores(
            load_score_maps(folder / "scores" / f"{sample.name}.npz"),
            threshold=section.threshold,
            align=recipe.cam.align,
            image=image,
            crf=section.crf.settings(),
            device=run.device,
        )
        write_label_map(path, labels)

    make_image_files(run, "labels", folder, ".png", make)
