"""The stage of pseudo labels: CAMs walk randomly along the affinities that a network gives."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ....runtime.io.image_io import write_label_map
from ....runtime.io.score_maps import ScoreMaps, load_score_maps, save_score_maps
from ....runtime.refine.pseudo_labels import WalkSettings, label_from_scores, walk_scores
from ...data.image_set import Sample
from ...engine.networks import Network, open_network
from ...engine.run import Run, Stage
from ...evaluation.miou import FolderPredictions, evaluate
from ...recipe.recipe import WalkRecipe
from ..contract import AffinitySource, DemoFigure, Measured
from .cam_stage import measure_scores
from .per_image import make_image_files


def walk_stage(source: AffinitySource) -> Stage:
    """Pseudo labels by the walk along the affinities of a source."""
    return Stage(
        "labels",
        ("walk",),
        ("cam", source.stage),
        partial(make_labels, source=source),
        measure_labels,
        text="pseudo labels of the training images",
    )


MEASURED_WALK = Measured(
    "walk",
    "walk",
    "labels",
    "labels/scores",
    "walk_miou",
    threshold=lambda recipe: float(recipe.walk.threshold),
)
DEMO_WALK = DemoFigure("walk_miou", "CAM + walk", "labels", "walk_miou")


def walk_settings(recipe: WalkRecipe) -> WalkSettings:
    """The recipe's walk as the runtime takes it, where CAMs are brought to the walk's grid."""
    return WalkSettings.of_section(recipe.walk.model_dump(), recipe.cam.align)


def make_labels(run: Run, folder: Path, digest: str, source: AffinitySource) -> None:
    """Write walked score maps (`scores/NAME.npz`) and pseudo labels (`NAME.png`)."""
    recipe = run.recipe_of(WalkRecipe)
    network, _ = open_network(source.network, run.weights(source.stage), run.device)
    _walk(run, network, recipe, source, folder / "scores")
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
    network: Network,
    image: NDArray[np.uint8],
    maps: ScoreMaps,
    recipe: WalkRecipe,
    source: AffinitySource,
    device: torch.device,
) -> ScoreMaps:
    """CAMs of one image after the random walk."""
    affinity, damping = source.affinities(source.read(network, image, recipe, device), recipe)
    return walk_scores(maps, affinity, source.walk_settings(recipe), damping)


def _walk(
    run: Run, network: Network, recipe: WalkRecipe, source: AffinitySource, folder: Path
) -> None:
    cams = run.folder / "cam" / "scores"

    def make(sample: Sample, image: NDArray[np.uint8], path: Path) -> None:
        maps = load_score_maps(cams / f"{sample.name}.npz")
        save_score_maps(path, walked_scores(network, image, maps, recipe, source, run.device))

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
