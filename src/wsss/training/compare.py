"""Several recipes on one image set: runs are made, or taken as they are, and measured alike."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, ConfigError
from ..runtime.files import atomic_write_bytes, make_folder
from ..runtime.progress import SILENT, Progress
from .data.image_set import ImageSet
from .models.build import BACKBONES
from .pipeline import train
from .published_figures import published_miou
from .recipe import Recipe, dump_recipe, load_recipe
from .report.iou import iou_columns
from .report.opened import OpenedRun, open_run
from .report.page import IouColumn

MEASURED = "measured.json"
"""Per-class IoU of what was measured before, by run and what it was made of."""
KINDS = {"walk_miou": "walk", "miou": ""}
"""Figures of stages that are mIoU, and what they are called where that is not the stage."""


@dataclass(frozen=True)
class CompareRow:
    """One mIoU of one run, in per cent.

    Attributes:
        recipe: name of the recipe; of the folder, where a run was given.
        stage: what was measured: a stage of the run, or `walk` within its labels.
        images: how many it was measured on; None where that is not recorded.
        seconds, host_mib, gpu_mib: what the stage took; None where that is not recorded.
        classes: IoU by class, with the background; {} where the stage has none.
        published: what the authors report, where the images are those of VOC 2012 by their
            classes and number; None elsewhere, or where nothing was found.
    """

    recipe: str
    method: str
    stage: str
    miou: float
    images: int | None
    seconds: float | None
    host_mib: int | None
    gpu_mib: int | None
    classes: Mapping[str, float | None]
    published: float | None


@dataclass(frozen=True)
class Comparison:
    """Runs on one image set, and what was measured on them.

    Attributes:
        runs: by name, in the order in which they were asked for.
        columns: per-class IoU by run, then by kind; see `iou_columns`.
    """

    images: ImageSet
    runs: Mapping[str, OpenedRun]
    columns: Mapping[str, Mapping[str, IouColumn]]
    rows: Sequence[CompareRow]

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {
            "data": str(self.images.root),
            "runs": {name: str(opened.run.folder) for name, opened in self.runs.items()},
            "rows": [asdict(row) for row in self.rows],
            "instances": self.instances(),
        }

    def instances(self) -> dict[str, dict[str, float]]:
        """Average precision of those runs that tell single objects, by run; see the stage."""
        records = {name: opened.finished.get("instances") for name, opened in self.runs.items()}
        return {name: record["figures"] for name, record in records.items() if record}


def compare(
    recipes: Sequence[str],
    images: ImageSet,
    out: Path,
    *,
    weights: Mapping[str, Path],
    overrides: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = SILENT,
) -> Comparison:
    """Run what has not been run yet, one recipe after the other, and measure all of it.

    Stages that recipes have in common are done once: later runs take them over.

    Args:
        recipes: names of shipped recipes, paths of TOML files, or folders of runs. The last are
            taken as they are.
        out: gets a run for each recipe, and `measured.json`; continued where it stopped.
        weights: files by backbone; '' for backbones that are not named.
        overrides: see `load_recipe`; of all recipes, but not of runs.

    Raises:
        ConfigError: two of one name, or one has no weights; WsssError: see `train`.
    """
    chosen = _chosen(recipes, overrides)
    paths = {
        name: _weights_of(recipe, weights)
        for name, recipe in chosen.items()
        if isinstance(recipe, Recipe) and not recipe.backbone.from_scratch
    }
    runs: dict[str, OpenedRun] = {}
    for name, recipe in chosen.items():
        folder = out / name if isinstance(recipe, Recipe) else recipe
        if isinstance(recipe, Recipe):
            others = [opened.run.folder for opened in runs.values()]
            progress.note(f"{name}: {recipe.method} on {recipe.backbone.name}")
            train(
                recipe,
                images,
                folder,
                weights_path=paths.get(name),
                reuse=others,
                device=device,
                progress=progress,
            )
        runs[name] = open_run(folder, images, device, progress)
        _require_same_images(runs[name])
    columns = _columns(runs, out)
    rows = [row for name, opened in runs.items() for row in _rows(name, opened, columns[name])]
    return Comparison(images, runs, columns, rows)


def read_weights(given: Sequence[str]) -> dict[str, Path]:
    """`BACKBONE=FILE` or `FILE` as `compare` takes them.

    Raises:
        ConfigError: one backbone, or none, is named twice.
    """
    weights: dict[str, Path] = {}
    for text in given:
        backbone, separator, file = text.partition("=")
        if backbone not in BACKBONES:  # a path may have an equals sign in it
            backbone, separator, file = "", "", text
        if backbone in weights:
            what = f"of {backbone}" if separator else "of no named backbone"
            raise ConfigError(f"--weights {what} is given twice: give one file for each backbone")
        weights[backbone] = Path(file)
    return weights


def _chosen(recipes: Sequence[str], overrides: Sequence[str]) -> dict[str, Recipe | Path]:
    """Recipes to run and folders to take, by name; all faults of recipes before any work."""
    chosen: dict[str, Recipe | Path] = {}
    for given in recipes:
        folder = Path(given)
        entry: Recipe | Path = folder
        if not (folder / "recipe.toml").is_file():
            entry = load_recipe(given, overrides)
        name = entry.name if isinstance(entry, Recipe) else folder.resolve().name
        if name in chosen:
            raise ConfigError(f"'{name}' is asked for twice: give each recipe or run once")
        chosen[name] = entry
    return chosen


def _weights_of(recipe: Recipe, weights: Mapping[str, Path]) -> Path:
    backbone = recipe.backbone.name
    path = weights.get(backbone, weights.get(""))
    if path is None:
        raise ConfigError(
            f"recipe '{recipe.name}' starts from ImageNet weights of {backbone}: give them by "
            f"--weights FILE, or --weights {backbone}=FILE beside those of other backbones"
        )
    return path


def _require_same_images(opened: OpenedRun) -> None:
    """Stages were made of the images that are compared on, so that their figures are of these."""
    digest = opened.run.images.digest(masks=False)
    for stage, record in opened.finished.items():
        if record["inputs"].get("images") != digest:
            raise ArtifactError(
                f"stage '{stage}' of '{opened.run.folder}' was made of other images than those of "
                f"'{opened.run.images.root}': give its recipe instead, or the images it was made of"
            )


def _columns(runs: Mapping[str, OpenedRun], out: Path) -> dict[str, dict[str, IouColumn]]:
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
    for name, opened in runs.items():
        digests = [str(record.get("digest")) for record in opened.finished.values()]
        settings = sha256(dump_recipe(opened.run.recipe).encode()).hexdigest()
        key = " ".join([*digests, settings, opened.run.images.digest(masks=True)])
        columns[name] = known[key] = known.get(key) or iou_columns(opened)
        stored = {key: {k: asdict(v) for k, v in kinds.items()} for key, kinds in known.items()}
        atomic_write_bytes(path, json.dumps(stored).encode())
    return columns


def _rows(name: str, opened: OpenedRun, columns: Mapping[str, IouColumn]) -> list[CompareRow]:
    recipe, classes = opened.run.recipe, opened.run.images.classes
    rows = []
    for stage, record in opened.finished.items():
        figures, memory = record["figures"], record.get("memory", {})
        for key, kind in KINDS.items():
            if figures.get(key) is None or stage == "seeds":  # those leave pixels undecided
                continue
            measured = kind or stage
            column = columns.get(measured)
            miou, images = figures[key], figures.get("images")
            if column is not None and column.miou is not None:
                miou, images = column.miou, column.images  # of the masks that are there now
            rows.append(
                CompareRow(
                    name,
                    recipe.method,
                    measured,
                    miou,
                    images,
                    record.get("seconds"),
                    memory.get("host_mib"),
                    memory.get("gpu_mib"),
                    column.iou if column else {},
                    published_miou(recipe.method, measured, classes, images),
                )
            )
    return rows
