"""What a run has to show, collected into `report.html`: figures, curves and a contact sheet."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.io.image_io import read_image, read_label_map
from ...runtime.io.progress import SILENT, Progress
from ...runtime.io.score_maps import ScoreMaps, load_score_maps
from ...runtime.refine.pseudo_labels import label_from_scores
from ...runtime.report.charts import Chart, Curve, thin
from ...runtime.report.document import write_page
from ...runtime.report.pictures import Picture, shrink
from ...runtime.report.text import format_seconds
from ...version import __version__
from ..data.image_set import ImageSet, Sample
from ..engine.metrics import read_metrics
from ..engine.run import Run, Stage
from ..methods.contract import Method
from ..recipe.recipe import WalkRecipe
from ..report.page import (
    PICTURE_SIDE,
    Report,
    Sheet,
    SheetRow,
    StageCard,
    caption,
    class_legend,
    evenly,
    heat_cell,
    labels_cell,
    render_report,
)
from .run_predictor import RunPredictor
from .run_view import iou_columns, open_run

MAX_MEASURED = 400
"""Images that per-class figures are counted on; longer lists are thinned evenly."""
MAX_POINTS = 300
"""Points of a curve; longer ones are averaged over neighbours."""

NUM_PICTURES = 8
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
    view = open_run(run_folder, images, device, progress)
    run, method, stages = view.run, view.method, view.stages
    finished, predictor = view.finished, view.predictor
    report = Report(
        title=run_folder.resolve().name,
        lead=f"Recipe {run.recipe.name}, from image-level labels to a segmenter.",
        facts=_facts(run, finished),
        stages=[_stage_card(method, each, finished.get(each.name)) for each in method.stages],
        sheets=[
            make_sheet(run, method, finished, predictor),
            *(method.sheets(run, finished) if predictor is not None else ()),
        ],
        classes=images.classes,
        iou=list(iou_columns(view, MAX_MEASURED).values()),
        charts=[chart for name in stages for chart in stage_charts(run_folder / name)],
        recipe=(run_folder / "recipe.toml").read_text(encoding="utf-8"),
        footer=f"Written by wsss {__version__}. Source of the images: {images.layout}.",
    )
    path = run_folder / "report.html"
    write_page(path, render_report(report))
    return path


def _facts(run: Run, finished: Mapping[str, dict[str, Any]]) -> list[tuple[str, str]]:
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


def _stage_card(method: Method, stage: Stage, record: dict[str, Any] | None) -> StageCard:
    name, text = stage.name, stage.text
    if record is None:
        return StageCard(name, text)
    found = record.get("figures", {}).items()  # None where no pixel was to be counted
    figures = {key: float(value) for key, value in found if value is not None}
    figures.pop("walk_images", None)  # the same images as those of the labels
    key = next((key for key in _UNITS if key in figures), None)
    headline = (f"{figures.pop(key):.1f}", _UNITS[key]) if key else None
    if not figures and stage.network is not None:
        headline = ("trained", "")
    names = _NAMES | dict(method.figure_names)
    shown = {names.get(key, key): f"{value:.6g}" for key, value in _rounded(figures).items()}
    return StageCard(name, text, headline, shown, format_seconds(float(record.get("seconds", 0))))


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


def make_sheet(
    run: Run, method: Method, finished: Collection[str], predictor: RunPredictor | None
) -> Sheet:
    """Pictures of validation images where the classifier can be applied, else of training images.

    Args:
        finished: names of the stages that have run.
        predictor: the run's networks, None where there are none.
    """
    painter = _Painter(run, method, finished, predictor)
    chosen, split = run.train_set, run.recipe.data.train_split
    walks = "walk" in method.modes
    # Without a walk pseudo labels are what was stored, of training images alone.
    can_show_any = painter.can_apply("cam") and (walks or not method.has_label_column)
    if run.val_set is not None and can_show_any:
        chosen, split = run.val_set, run.recipe.data.val_split
    samples = evenly(chosen.samples, NUM_PICTURES)
    rows = []
    with run.progress.task("pictures", len(samples)) as task:
        for sample in samples:
            rows.append(painter.row(sample))
            task.advance()
    told = "CAM, walk and pseudo label are" if walks else "The CAM is"
    made_of = "from the walk" if walks else "that was learnt"
    return Sheet(
        title="Pictures",
        text=f"{len(samples)} of the {len(chosen.samples)} images in list '{split}'. {told} told "
        "which classes are in the image; the segmenter is not.",
        columns=[
            ("photo", ""),
            ("truth", "mask"),
            ("CAM", "score"),
            *([("walk", "score")] if walks else []),
            *([("pseudo label", made_of)] if method.has_label_column else []),
            ("segmenter", "from the photo alone"),
        ],
        rows=rows,
        legend=class_legend(run),
        has_scores=True,
    )


class _Painter:
    """Pictures of an image: stored results where there are any, else the networks are applied."""

    def __init__(
        self,
        run: Run,
        method: Method,
        finished: Collection[str],
        predictor: RunPredictor | None,
    ) -> None:
        self.run, self.method = run, method
        self.finished, self.predictor = finished, predictor

    def can_apply(self, stage: str) -> bool:
        return stage in self.finished and self.predictor is not None and self.predictor.has(stage)

    def row(self, sample: Sample) -> SheetRow:
        image = read_image(sample.image_path)
        cam = self._cam(sample, image)
        walk = self._walk(sample, image)
        label = self._pseudo_label(sample, image, walk)
        truth = sample.load_mask() if sample.mask is not None else None
        cells = (
            shrink(image, PICTURE_SIDE),
            labels_cell(image, truth, "no mask"),
            heat_cell(image, cam),
            *([heat_cell(image, walk)] if "walk" in self.method.modes else []),
            *([labels_cell(image, label, "not run")] if self.method.has_label_column else []),
            labels_cell(image, self._segment(image), "not run"),
        )
        return SheetRow(sample.name, caption(self.run, sample), cells)

    def _cam(self, sample: Sample, image: Picture) -> ScoreMaps | None:
        path = self.run.folder / "cam" / "scores" / f"{sample.name}.npz"
        if "cam" in self.finished and path.is_file():
            return load_score_maps(path)
        if self.predictor is None or not self.can_apply("cam"):
            return None
        return self.predictor.score_maps(image, sample.labels, "cam")

    def _walk(self, sample: Sample, image: Picture) -> ScoreMaps | None:
        needed = self.method.modes.get("walk")
        if "labels" not in self.finished or needed is None:
            return None
        path = self.run.folder / "labels" / "scores" / f"{sample.name}.npz"
        if path.is_file():
            return load_score_maps(path)
        if self.predictor is None or not all(self.can_apply(stage) for stage in needed):
            return None
        return self.predictor.score_maps(image, sample.labels, "walk")

    def _pseudo_label(
        self, sample: Sample, image: Picture, walk: ScoreMaps | None
    ) -> NDArray[np.uint8] | None:
        path = self.run.folder / "labels" / f"{sample.name}.png"
        if "labels" in self.finished and path.is_file():
            return read_label_map(path)
        recipe = self.run.recipe
        if walk is None or not isinstance(recipe, WalkRecipe):
            return None
        section = recipe.walk
        return label_from_scores(
            walk,
            threshold=section.threshold,
            align=recipe.cam.align,
            image=image,
            crf=section.crf.settings(),
            device=self.run.device,
        )

    def _segment(self, image: Picture) -> NDArray[np.uint8] | None:
        if self.predictor is None or not self.can_apply("segmenter"):
            return None
        return self.predictor.recipe_label(image, None, "segmenter")
