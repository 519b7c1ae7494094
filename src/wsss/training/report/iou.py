"""Per-class IoU of what the stages of a run have made."""

from dataclasses import replace

import numpy as np

from ..data.image_set import ImageSet
from ..evaluation import EvalReport, FolderPredictions, Predictions, evaluate
from ..measure import labels_used
from ..predictor import RunPredictions
from ..recipe import WalkRecipe
from .opened import OpenedRun
from .page import IouColumn
from .pictures import evenly


def iou_columns(opened: OpenedRun, limit: int | None = None) -> dict[str, IouColumn]:
    """By kind: `cam`, then `walk` and `labels` where the method has them, then `segmenter`.

    Stored maps are measured on the list of figures, the segmenter on the validation list.

    Args:
        limit: images that are measured; longer lists are thinned evenly.
    """
    columns = {"cam": _stored(opened, "CAM", "cam", limit)}
    if "walk" in opened.run.recipe.ways():
        columns["walk"] = _stored(opened, "walk", "labels/scores", limit)
    if "labels" in opened.stages:
        columns["labels"] = _stored(opened, "pseudo labels", "labels", limit)
    return columns | {"segmenter": _of_segmenter(opened, limit)}


def _stored(opened: OpenedRun, name: str, place: str, limit: int | None) -> IouColumn:
    run, figures_set = opened.run, opened.run.figures_set
    was_run = place.split("/")[0] in opened.finished
    if not was_run or figures_set is None:
        return IouColumn(name, "no masks" if was_run else "not run")
    recipe, subset = run.recipe, _thinned(figures_set, limit)
    threshold = recipe.cam.threshold
    if isinstance(recipe, WalkRecipe) and place == "labels/scores":
        threshold = recipe.walk.threshold
    used = labels_used(run.folder / place)
    predictions = FolderPredictions(run.folder / place, subset, image_labels_used=used)
    report = _evaluate(opened, predictions, subset, run.figures_split, threshold)
    return _column(name, report, len(figures_set.samples))


def _of_segmenter(opened: OpenedRun, limit: int | None) -> IouColumn:
    predictor = opened.predictor
    if "segmenter" not in opened.finished or predictor is None or not predictor.has("segmenter"):
        return IouColumn("segmenter", "not run")
    val_set = opened.run.val_set
    masked = [sample for sample in val_set.samples if sample.mask] if val_set else []
    if val_set is None or not masked:
        return IouColumn("segmenter", "no masks")
    predictions = RunPredictions(predictor, "segmenter", use_image_labels=False)
    subset = _thinned(replace(val_set, samples=tuple(masked)), limit)
    report = _evaluate(opened, predictions, subset, opened.run.recipe.data.val_split, 0.0)
    return _column("segmenter", report, len(masked))


def _evaluate(
    opened: OpenedRun, predictions: Predictions, subset: ImageSet, split: str, threshold: float
) -> EvalReport:
    """`threshold` plays no part where predictions are label maps."""
    align, progress = opened.run.recipe.cam.align, opened.run.progress
    return evaluate(predictions, subset, split, threshold=threshold, align=align, progress=progress)


def _thinned(images: ImageSet, limit: int | None) -> ImageSet:
    return images if limit is None else replace(images, samples=evenly(images.samples, limit))


def _column(name: str, report: EvalReport, num_images: int) -> IouColumn:
    labels = "labels given" if report.image_labels_used else "no labels given"
    of_all = "" if report.images == num_images else f" of {num_images}"
    return IouColumn(
        name,
        f"{report.list_name}, {report.images}{of_all} images, {labels}",
        _finite(report.miou),
        {key: _finite(value) for key, value in report.iou.items()},
        report.images,
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
