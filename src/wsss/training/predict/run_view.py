"""A run as its pages show it: what has finished, its networks, and the IoU of each class."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArtifactError
from ...runtime.io.progress import Progress
from ..data.image_set import ImageSet
from ..engine.networks import choose_device
from ..engine.run import Run, read_stage
from ..evaluation.miou import EvalReport, FolderPredictions, evaluate
from ..methods import open_method
from ..methods.contract import Method
from ..methods.shared.segmenter_stage import evaluate_on_validation
from ..recipe.sections import SegmenterSection
from ..recipes import load_recipe
from ..report.page import IouColumn, evenly
from .measure import labels_used
from .run_predictor import RunPredictor


@dataclass(frozen=True)
class RunView:
    """A run on an image set.

    Attributes:
        stages: names of all of the method's, in its order.
        finished: records of those that have run, by name, in the same order.
        predictor: the run's networks; None where none is trained.
    """

    run: Run
    method: Method
    stages: tuple[str, ...]
    finished: Mapping[str, dict[str, Any]]
    predictor: RunPredictor | None


def open_run(folder: Path, images: ImageSet, device: str, progress: Progress) -> RunView:
    """Look at a run, whatever stages have finished.

    Args:
        device: where its networks are applied: auto, cpu or cuda.

    Raises:
        ArtifactError: no run, or one of other classes.
    """
    if not (folder / "recipe.toml").is_file():
        raise ArtifactError(f"'{folder}' is no run: expected a folder with recipe.toml in it")
    try:
        classes = json.loads((folder / "run.json").read_text(encoding="utf-8"))["classes"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(
            f"'{folder}' is no run: expected a run.json that names its classes"
        ) from None
    images.require_classes(classes, f"run '{folder}'")
    recipe = load_recipe(folder / "recipe.toml")
    run = Run(folder, recipe, images, None, None, None, choose_device(device), progress)
    method = open_method(recipe.method)
    stages = tuple(stage.name for stage in method.stages)
    records = {name: read_stage(folder / name) for name in stages}
    is_trained = any(run.weights(name).is_file() for name in stages)
    return RunView(
        run,
        method,
        stages,
        {name: record for name, record in records.items() if record},
        RunPredictor(folder, device) if is_trained else None,
    )


def iou_columns(view: RunView, limit: int | None = None) -> dict[str, IouColumn]:
    """What `Method.measured` lists, by kind.

    Stored maps are measured on the list of figures, networks that segment on the validation list.

    Args:
        limit: images whose stored maps are measured; longer lists are thinned evenly.
    """
    recipe = view.run.recipe
    return {
        each.kind: _of_network(view, each.stage, each.section(recipe))
        if each.place is None
        else _stored(view, each.title, each.place, limit, each.threshold(recipe))
        for each in view.method.measured
    }


def _stored(
    view: RunView, name: str, place: str, limit: int | None, threshold: float = 0.0
) -> IouColumn:
    """Of maps below the run's folder; `threshold` plays no part where they are label maps."""
    run, figures_set = view.run, view.run.figures_set
    was_run = place.split("/")[0] in view.finished
    if not was_run or figures_set is None:
        return IouColumn(name, "no masks" if was_run else "not run")
    subset = _thinned(figures_set, limit)
    used = labels_used(run.folder / place)
    predictions = FolderPredictions(run.folder / place, subset, image_labels_used=used)
    report = evaluate(
        predictions,
        subset,
        run.figures_split,
        threshold=threshold,
        align=run.recipe.cam.align,
        progress=run.progress,
    )
    return _column(name, report, len(figures_set.samples))


def _of_network(view: RunView, stage: str, section: SegmenterSection) -> IouColumn:
    """Of a stage whose network is a segmenter, used as its section says."""
    run = view.run
    if stage not in view.finished or not run.weights(stage).is_file():
        return IouColumn(stage, "not run")
    report = evaluate_on_validation(run, run.folder / stage, section)
    return IouColumn(stage, "no masks") if report is None else _column(stage, report, report.images)


def _thinned(images: ImageSet, limit: int | None) -> ImageSet:
    return images if limit is None else replace(images, samples=evenly(images.samples, limit))


def _column(name: str, report: EvalReport, num_images: int) -> IouColumn:
    of_all = "" if report.images == num_images else f" of {num_images}"
    count = f"{report.images}{of_all}"
    return IouColumn(
        name,
        circumstances(report.list_name, count, report.image_labels_used, report.background),
        _finite(report.miou),
        {key: _finite(value) for key, value in report.iou.items()},
        report.images,
        report.list_name,
        report.background,
        report.image_labels_used,
    )


def circumstances(
    list_name: str, images: str, image_labels_used: bool | None, background: str | None
) -> str:
    """What a figure stands on: list, number of images, use of image-level labels, threshold."""
    labels = {True: "labels given", False: "no labels given", None: "use of labels not known"}
    parts = [list_name, f"{images} images", labels[image_labels_used]]
    if background is not None and background.startswith("threshold"):
        parts.append(background)
    return ", ".join(parts)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
