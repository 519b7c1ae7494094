"""What `wsss eval` does: find out what was given, and measure it by one evaluator."""

from pathlib import Path
from typing import Literal, cast

from ...errors import ConfigError
from ...runtime.bulk.formats.png import FOLDER as MASKS
from ...runtime.bulk.job import JOB, read_job
from ...runtime.io.progress import SILENT, Progress
from ...runtime.refine.geometry import Align
from ..data.image_set import ImageSet
from ..engine.run import read_stage
from ..evaluation.instance_predictions import open_instance_predictions
from ..evaluation.instances import InstancePredictions, InstanceReport, evaluate_instances
from ..evaluation.miou import EvalReport, FolderPredictions, Predictions, evaluate
from ..methods import open_method
from ..recipe.recipe import Recipe
from ..recipes import load_recipe
from .run_predictor import RunInstances, RunPredictions, RunPredictor


def measure(
    path: str | Path,
    images: ImageSet,
    *,
    split: str | None = None,
    mode: str | None = None,
    use_image_labels: bool = True,
    threshold: float | None = None,
    sweep: bool = False,
    align: Literal["reference", "corners"] | str | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> EvalReport:
    """Measure a run (its networks on a list) or a folder of stored predictions.

    Args:
        split: list of the image set; default: the recipe's validation list for a run, all
            images for a folder.
        mode: of a run: cam, walk, labels or segmenter, which is the default; see
            `RunPredictor.recipe_label`.
        threshold, align: defaults come from the run's recipe, also for folders inside a run.

    Raises:
        ArtifactError, ConfigError, DataError: see `evaluate`.
    """
    path = Path(path)
    if (path / JOB).is_file():  # of `wsss label`
        path = path / MASKS
    recipe = _recipe_of(path)
    predictions: Predictions
    if (path / "recipe.toml").is_file():
        predictor = _open_run(path, images, device)
        mode = mode or "segmenter"
        if mode == "labels" and mode not in predictor.method.modes and (path / mode).is_dir():
            raise ConfigError(
                f"method {predictor.recipe.method} makes labels in training alone: measure those "
                f"that there are by `wsss eval {path / mode} --split "
                f"{predictor.recipe.data.train_split}`"
            )
        predictor.stages_of(mode)  # refuses a mode that there is not, before any image is read
        predictions = RunPredictions(predictor, mode, use_image_labels=use_image_labels)
        split = split or predictor.recipe.data.val_split
    elif mode is not None:
        raise ConfigError(
            f"'{path}' is no run, and a mode chooses what a run predicts: leave the mode out"
        )
    else:
        folder = FolderPredictions(path, images.select(split), labels_used(path))
        predictions, path = folder, folder.folder
    if predictions.are_labels and (sweep or threshold is not None):
        raise ConfigError(
            f"{predictions.description}: these are label maps, which no threshold changes: leave "
            "--threshold and --sweep out, or measure score maps"
        )
    if threshold is None:
        threshold = _default_threshold(path, mode, recipe)
    return evaluate(
        predictions,
        images.select(split),
        split or "all",
        threshold=threshold,
        sweep=sweep,
        align=cast(Align, align or (recipe.cam.align if recipe else "reference")),
        progress=progress,
    )


def measure_instances(
    path: str | Path,
    images: ImageSet,
    *,
    split: str | None = None,
    use_image_labels: bool = True,
    device: str = "auto",
    progress: Progress = SILENT,
) -> InstanceReport:
    """Measure instances by average precision: of a run, or predicted before.

    Args:
        path: a run that has instances, or what `open_instance_predictions` takes.
        split: list of the image set; default: the recipe's validation list for a run, else all
            images.
        use_image_labels, device: of a run.

    Raises:
        ArtifactError, ConfigError, DataError: see `evaluate_instances` and `RunPredictor`.
    """
    path = Path(path)
    predictions: InstancePredictions
    if (path / "recipe.toml").is_file():
        predictor = _open_run(path, images, device)
        predictions = RunInstances(predictor, use_image_labels=use_image_labels)
        split = split or predictor.recipe.data.val_split
    else:
        predictions = open_instance_predictions(path, images)
    chosen = images.select(split)
    return evaluate_instances(predictions, chosen, split or "all", progress=progress)


def _open_run(path: Path, images: ImageSet, device: str) -> RunPredictor:
    """The networks of a run, which must know the classes of the images."""
    predictor = RunPredictor(path, device)
    images.require_classes(predictor.classes, f"run '{path}'")
    return predictor


def labels_used(path: Path) -> bool | None:
    """Whether stored predictions saw image-level labels, as far as their maker says it."""
    if (path.parent / JOB).is_file():
        return read_job(path.parent)["settings"].get("image_labels") is not None
    stage = path if (path / "stage.json").is_file() else path.parent  # maps of a part of it
    record = read_stage(stage)
    if stage.name not in ("cam", "seeds", "labels") or not record:
        return None
    return bool(record.get("settings", {}).get("labels.present_only", True))


def _recipe_of(path: Path) -> Recipe | None:
    """The recipe of the run that the path is or lies in."""
    for folder in (path, path.parent, path.parent.parent):
        if (folder / "recipe.toml").is_file():
            return load_recipe(folder / "recipe.toml")
    return None


def _default_threshold(path: Path, mode: str | None, recipe: Recipe | None) -> float:
    if recipe is None:
        return 0.2
    is_run = (path / "recipe.toml").is_file()
    refined = mode in ("walk", "labels") if is_run else path.parent.name == "labels"
    threshold: float = open_method(recipe.method).label_threshold(recipe)
    return threshold if refined else recipe.cam.threshold
