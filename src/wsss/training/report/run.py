"""What a run has to show, collected into `report.html`."""

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArtifactError
from ...runtime.progress import SILENT, Progress
from ...runtime.report.charts import Chart, Curve, thin
from ...runtime.report.document import write_page
from ...runtime.report.text import format_seconds
from ...version import __version__
from ..data.image_set import ImageSet
from ..devices import choose_device
from ..evaluation import EvalReport, FolderPredictions, evaluate
from ..measure import labels_used
from ..metrics import read_metrics
from ..pipeline import METHODS
from ..predictor import NETWORKS, RunPredictions, RunPredictor
from ..recipe import WalkRecipe, load_recipe
from ..run import Run, read_stage
from .irnet import make_irnet_sheets
from .page import IouColumn, Report, StageCard, render_report
from .pictures import evenly, make_sheet

MAX_MEASURED = 400
"""Images that per-class figures are counted on; longer lists are thinned evenly."""
MAX_POINTS = 300
"""Points of a curve; longer ones are averaged over neighbours."""

STAGES = {
    "cam": "classifier and its activation maps",
    "seeds": "labels taken as certain",
    "affinity": "which neighbours are alike",
    "irnet": "boundaries, and the way to the middle of each object",
    "cian": "segmenter of images that share a class, trained on the seeds",
    "labels": "pseudo labels of the training images",
    "instances": "cells that meet in one place are an object",
    "segmenter": "trained on the pseudo labels",
}
"""What the stages of all methods do."""
_UNITS = {"miou": "% mIoU", "val_map": "% mAP", "ap50": "% AP50"}
_NAMES = {
    "miou": "mIoU %",
    "images": "images measured",
    "walk_miou": "mIoU % of the walk",
    "decided": "pixels decided %",
    "accuracy": "of these right %",
    "val_map": "classifier mAP %",
    "val_classification": "validation loss",
    "ap70": "AP70 %",
    "cam_ap50": "AP50 % of CAMs alone",
    "cam_ap70": "AP70 % of CAMs alone",
    "boundary_ap50": "AP50 % with boundaries",
    "boundary_ap70": "AP70 % with boundaries",
}


def write_run_report(
    run_folder: Path,
    images: ImageSet,
    *,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Path:
    """Write `report.html` into a run, from whatever stages have finished.

    Args:
        images: the image set of the run.
        device: where the run's networks are applied: auto, cpu or cuda.

    Returns:
        Path of the page.

    Raises:
        ArtifactError: no run, or one of other classes; DataError: an image cannot be read.
    """
    run = _open_run(run_folder, images, device, progress)
    stages = [stage.name for stage in METHODS[run.recipe.method]]
    finished = {name: read_stage(run_folder / name) for name in stages}
    finished = {name: record for name, record in finished.items() if record}
    predictor = _open_predictor(run, device)
    report = Report(
        title=run_folder.resolve().name,
        lead=f"Recipe {run.recipe.name}, from image-level labels to a segmenter.",
        facts=_facts(run, finished),
        stages=[_stage_card(name, finished.get(name)) for name in stages],
        sheets=[make_sheet(run, finished, predictor), *make_irnet_sheets(run, finished, predictor)],
        classes=images.classes,
        iou=_iou_columns(run, finished, predictor),
        charts=[chart for name in stages for chart in stage_charts(run_folder / name)],
        recipe=(run_folder / "recipe.toml").read_text(encoding="utf-8"),
        footer=f"Written by wsss {__version__}. Source of the images: {images.layout}.",
    )
    path = run_folder / "report.html"
    write_page(path, render_report(report))
    return path


def _open_run(folder: Path, images: ImageSet, device: str, progress: Progress) -> Run:
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
    return Run(folder, recipe, images, None, None, None, choose_device(device), progress)


def _open_predictor(run: Run, device: str) -> RunPredictor | None:
    """None where no stage has a trained network."""
    if not any(run.weights(stage.name).is_file() for stage in METHODS[run.recipe.method]):
        return None
    return RunPredictor(run.folder, device)


def _facts(run: Run, finished: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    lists = [f"{len(run.train_set.samples)} to learn from"]
    if run.val_set is not None:
        lists.append(f"{len(run.val_set.samples)} to validate")
    devices = sorted({str(record.get("device", "unknown")) for record in finished.values()})
    seconds = sum(float(record.get("seconds", 0)) for record in finished.values())
    return [
        ("Method", run.recipe.method),
        ("Backbone", run.recipe.backbone.name),
        ("Images", f"{run.images.root.name}: {', '.join(lists)}"),
        ("Classes", str(len(run.images.classes))),
        ("Device", ", ".join(devices) or "none yet"),
        ("Time", format_seconds(seconds)),
    ]


def _stage_card(name: str, record: dict[str, Any] | None) -> StageCard:
    if record is None:
        return StageCard(name, STAGES[name])
    figures = {key: float(value) for key, value in record.get("figures", {}).items()}
    figures.pop("walk_images", None)  # the same images as those of the labels
    key = next((key for key in _UNITS if key in figures), None)
    headline = (f"{figures.pop(key):.1f}", _UNITS[key]) if key else None
    if not figures and name in NETWORKS:
        headline = ("trained", "")
    shown = {_NAMES.get(key, key): f"{value:.6g}" for key, value in _rounded(figures).items()}
    return StageCard(
        name, STAGES[name], headline, shown, format_seconds(float(record.get("seconds", 0)))
    )


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {
        key: round(value, 3 if key == "val_classification" else 1) for key, value in figures.items()
    }


def stage_charts(folder: Path) -> list[Chart]:
    """Losses of a stage over its epochs, and the figures of its validation."""
    rows = read_metrics(folder / "metrics.jsonl")
    keys = [k for k in dict.fromkeys(k for row in rows for k in row)]
    keys = [key for key in keys if key not in ("step", "epoch", "learning_rate")]
    terms = [key for key in keys if key != "loss" and not key.startswith("val_")]
    if len(terms) == 1:  # the same numbers as the loss
        keys.remove(terms[0])
    percent = [key for key in keys if key == "val_map"]
    losses = [key for key in keys if key not in percent]
    charts = []
    for title, chosen in ((f"{folder.name}: loss", losses), (f"{folder.name}: mAP %", percent)):
        curves = [_curve(rows, key) for key in chosen]
        if curves:
            charts.append(Chart(title, "epoch", curves))
    return charts


def _curve(rows: Sequence[dict[str, float]], key: str) -> Curve:
    points = [(row.get("epoch", row.get("step", 0)), row[key]) for row in rows if key in row]
    x, y = thin([x for x, _ in points], [y for _, y in points], MAX_POINTS)
    names = {"val_classification": "validation loss", "val_map": "validation mAP"}
    return Curve(names.get(key, key.replace("_", " ")), x, y, dashed=key.startswith("val_"))


def _iou_columns(
    run: Run, finished: Collection[str], predictor: RunPredictor | None
) -> list[IouColumn]:
    """Stored maps are measured on the list of figures, the segmenter on the validation list."""
    recipe, figures_set = run.recipe, run.figures_set
    columns = []
    places = [("CAM", "cam", recipe.cam.threshold)]
    if isinstance(recipe, WalkRecipe):
        places.append(("walk", "labels/scores", recipe.walk.threshold))
    if "labels" in [stage.name for stage in METHODS[recipe.method]]:
        places.append(("pseudo labels", "labels", 0.0))  # label maps, which no threshold changes
    for name, place, threshold in places:
        was_run = place.split("/")[0] in finished
        if not was_run or figures_set is None:
            columns.append(IouColumn(name, "no masks" if was_run else "not run"))
            continue
        subset = _thinned(figures_set)
        report = evaluate(
            FolderPredictions(run.folder / place, subset, labels_used(run.folder / place)),
            subset,
            recipe.data.figures_split,
            threshold=threshold,
            align=recipe.cam.align,
            progress=run.progress,
        )
        columns.append(_iou_column(name, report, len(figures_set.samples)))
    return [*columns, _segmenter_column(run, finished, predictor)]


def _segmenter_column(
    run: Run, finished: Collection[str], predictor: RunPredictor | None
) -> IouColumn:
    if "segmenter" not in finished or predictor is None or not predictor.has("segmenter"):
        return IouColumn("segmenter", "not run")
    val_set = run.val_set
    masked = [sample for sample in val_set.samples if sample.mask] if val_set else []
    if val_set is None or not masked:
        return IouColumn("segmenter", "no masks")
    predictions = RunPredictions(predictor, "segmenter", use_image_labels=False)
    subset = _thinned(replace(val_set, samples=tuple(masked)))
    report = evaluate(predictions, subset, run.recipe.data.val_split, progress=run.progress)
    return _iou_column("segmenter", report, len(masked))


def _thinned(images: ImageSet) -> ImageSet:
    return replace(images, samples=evenly(images.samples, MAX_MEASURED))


def _iou_column(name: str, report: EvalReport, num_images: int) -> IouColumn:
    labels = "labels given" if report.image_labels_used else "no labels given"
    of_all = "" if report.images == num_images else f" of {num_images}"
    return IouColumn(
        name,
        f"{report.list_name}, {report.images}{of_all} images, {labels}",
        _finite(report.miou),
        {key: _finite(value) for key, value in report.iou.items()},
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
