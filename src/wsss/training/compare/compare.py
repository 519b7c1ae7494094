"""Several recipes on one image set: runs are made, or taken as they are, and measured alike."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...runtime.io.files import atomic_write_bytes, make_folder
from ...runtime.io.progress import SILENT, Progress
from ..data.class_list import VOC_CLASSES
from ..data.image_set import ImageSet
from ..engine.networks import choose_device
from ..methods.contract import Method, Published
from ..pipeline import train
from ..predict.run_view import RunView, iou_columns, open_run
from ..recipe.recipe import dump_recipe
from ..report.page import IouColumn
from .inputs import check_entries, read_entries

MEASURED = "measured.json"
"""Per-class IoU of what was measured before, by run and what it was made of."""
MEASURED_FORMAT = 3
"""Raised when `iou_columns` gives other columns, or other figures of the same run."""
_VOC_IMAGES = {"segmenter": 1449}
_VOC_TRAIN_IMAGES = 1464

COLUMNS = (
    "recipe",
    "method",
    "backbone",
    "stage",
    "miou",
    "published",
    "published_source",
    "list_name",
    "images",
    "background",
    "image_labels_used",
    "seconds",
    "host_mib",
    "gpu_mib",
)


@dataclass(frozen=True)
class CompareRow:
    """One mIoU of one run, in per cent.

    Attributes:
        recipe: name of the recipe; of the folder, where a run was given.
        stage: what was measured: a stage of the run, or a part of one, such as `walk`; see
            `Method.measured`.
        list_name, images: what it was measured on, and how many of it.
        background: the rule that made background: a threshold, or `in the predictions`.
        image_labels_used: whether image-level labels helped.
        seconds, host_mib, gpu_mib: what the stage took; none of a part of a stage.
        classes: IoU by class, with the background; {} where there are no masks now.
        published, published_source: what the authors report of the same backbone, and where, if
            the images are those of VOC 2012 by their classes and number; None elsewhere, or where
            nothing was found.

    What is not recorded, or not to be measured with the masks that are there now, is None.
    """

    recipe: str
    method: str
    backbone: str
    stage: str
    miou: float
    list_name: str | None
    images: int | None
    background: str | None
    image_labels_used: bool | None
    seconds: float | None
    host_mib: int | None
    gpu_mib: int | None
    classes: Mapping[str, float | None]
    published: float | None
    published_source: str | None


@dataclass(frozen=True)
class StageCost:
    """What one stage of one run took where it was first run; None where that is not recorded."""

    recipe: str
    stage: str
    seconds: float | None = None
    host_mib: int | None = None
    gpu_mib: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Runs on one image set, and what was measured on them.

    Attributes:
        runs: by name, in the order in which they were asked for.
        columns: per-class IoU by run, then by kind; see `iou_columns`.
    """

    images: ImageSet
    runs: Mapping[str, RunView]
    columns: Mapping[str, Mapping[str, IouColumn]]
    rows: Sequence[CompareRow]

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {
            "data": str(self.images.root),
            "runs": {name: str(view.run.folder) for name, view in self.runs.items()},
            "rows": [asdict(row) for row in self.rows],
            "costs": [asdict(cost) for cost in self.costs()],
            "instances": self.instances(),
        }

    def costs(self) -> list[StageCost]:
        """Of all stages that have finished, measured by mIoU or not; run by run."""
        return [
            _cost(name, stage, record)
            for name, view in self.runs.items()
            for stage, record in view.finished.items()
        ]

    def instances(self) -> dict[str, dict[str, float]]:
        """Average precision of those runs that tell single objects, by run; see the stage."""
        records = {name: view.finished.get("instances") for name, view in self.runs.items()}
        return {name: record["figures"] for name, record in records.items() if record}


def compare(
    recipes: Sequence[str],
    images: ImageSet,
    out: Path,
    *,
    weights: Mapping[str, Path],
    overrides: Sequence[str] = (),
    reuse: Sequence[Path] = (),
    device: str = "auto",
    progress: Progress = SILENT,
) -> Comparison:
    """Run what has not been run yet, one recipe after the other, and measure all of it.

    Stages that recipes or runs have in common are done once: what one of them has finished, in
    this call or before, the others take over.

    Args:
        recipes: names of shipped recipes, paths of TOML files, or folders of runs. The last are
            taken as they are.
        out: gets a run for each recipe, and `measured.json`; continued where it stopped.
        weights: files by backbone; '' for backbones that are not named.
        overrides: see `load_recipe`; of all recipes, but not of runs.
        reuse: folders of further runs, whose finished stages are taken over; see `train`.

    Raises:
        WsssError: see `read_entries` and `check_entries`; before the first stage is run.
    """
    entries = read_entries(recipes, out, weights=weights, overrides=overrides, reuse=reuse)
    check_entries(entries, images, reuse=reuse, device=choose_device(device))
    for entry in entries:
        if entry.recipe is None:
            continue
        progress.note(f"{entry.name}: {entry.recipe.method} on {entry.recipe.backbone.name}")
        train(
            entry.recipe,
            images,
            entry.folder,
            weights_path=entry.weights,
            reuse=[*reuse, *(other.folder for other in entries if other is not entry)],
            device=device,
            progress=progress,
        )
    # Opened when all are trained: networks in memory would count as memory of the trainings.
    runs = {entry.name: open_run(entry.folder, images, device, progress) for entry in entries}
    columns = _columns(runs, out)
    rows = [row for name, view in runs.items() for row in _rows(name, view, columns[name])]
    return Comparison(images, runs, columns, rows)


def _columns(runs: Mapping[str, RunView], out: Path) -> dict[str, dict[str, IouColumn]]:
    """Per-class IoU; what has not changed since it was last measured is read.

    By digests of the run's stages and of the images with their masks.
    """
    path = out / MEASURED
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        known = {key: {k: IouColumn(**v) for k, v in kinds.items()} for key, kinds in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        known = {}
    columns = {}
    make_folder(out)
    for name, view in runs.items():
        digests = [str(record.get("digest")) for record in view.finished.values()]
        settings = sha256(dump_recipe(view.run.recipe).encode()).hexdigest()
        key = " ".join(
            [str(MEASURED_FORMAT), *digests, settings, view.run.images.digest(masks=True)]
        )
        columns[name] = known[key] = known.get(key) or iou_columns(view)
        stored = {key: {k: asdict(v) for k, v in kinds.items()} for key, kinds in known.items()}
        atomic_write_bytes(path, json.dumps(stored).encode())
    return columns


def _rows(name: str, view: RunView, columns: Mapping[str, IouColumn]) -> list[CompareRow]:
    method, backbone = view.run.recipe.method, view.run.recipe.backbone.name
    rows = []
    for stage, record in view.finished.items():
        figures = record["figures"]
        for each in view.method.measured:
            if each.stage != stage or figures.get(each.figure) is None:
                continue
            measured = each.kind
            # Of the masks that are there now, else of those that were there in training.
            miou, column = figures[each.figure], columns.get(measured)
            if column is not None and column.miou is not None:
                miou = column.miou
            else:
                column = IouColumn(measured, "", images=figures.get("images"))
            classes = view.run.images.classes
            published = published_miou(view.method, backbone, measured, classes, column.images)
            cost = _cost(name, stage, record) if measured == stage else StageCost(name, stage)
            rows.append(
                CompareRow(
                    recipe=name,
                    method=method,
                    backbone=backbone,
                    stage=measured,
                    miou=miou,
                    list_name=column.list_name,
                    images=column.images,
                    background=column.background,
                    image_labels_used=column.image_labels_used,
                    seconds=cost.seconds,
                    host_mib=cost.host_mib,
                    gpu_mib=cost.gpu_mib,
                    classes=column.iou,
                    published=published.miou if published else None,
                    published_source=published.source if published else None,
                )
            )
    return rows


def _cost(name: str, stage: str, record: Mapping[str, Any]) -> StageCost:
    memory = record.get("memory", {})
    seconds = record.get("seconds")
    return StageCost(name, stage, seconds, memory.get("host_mib"), memory.get("gpu_mib"))


def published_miou(
    method: Method, backbone: str, measured: str, classes: Sequence[str], images: int | None
) -> Published | None:
    """What the authors had of the same network; None where nothing was found, or not on VOC 2012.

    Args:
        measured: kind of `Method.measured`.
        classes, images: what our own figure is of; the number of images tells other lists.
    """
    of_voc = _VOC_IMAGES.get(measured, _VOC_TRAIN_IMAGES)
    is_voc = tuple(classes) == VOC_CLASSES and images == of_voc
    return method.published.get((backbone, measured)) if is_voc else None


def write_compare_table(comparison: Comparison, path: Path) -> Path:
    """Write a line for each mIoU, then one for each stage without; returns the path.

    Behind `COLUMNS` stands the IoU of each class in per cent, as `iou NAME`. What was not measured
    or recorded is empty.
    """
    names = ("background", *comparison.images.classes)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*COLUMNS, *(f"iou {name}" for name in names)])
    for cells, classes in _lines(comparison):
        writer.writerow([*(cells.get(key) for key in COLUMNS), *map(classes.get, names)])
    atomic_write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))
    return path


def _lines(
    comparison: Comparison,
) -> Iterator[tuple[Mapping[str, object], Mapping[str, float | None]]]:
    """Cells by column, and IoU by class."""
    measured = {(row.recipe, row.stage) for row in comparison.rows}
    for row in comparison.rows:
        yield vars(row), row.classes
    for cost in comparison.costs():
        if (cost.recipe, cost.stage) not in measured:
            recipe = comparison.runs[cost.recipe].run.recipe
            names = {"method": recipe.method, "backbone": recipe.backbone.name}
            yield vars(cost) | names, {}
