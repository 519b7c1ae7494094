"""What `wsss eval` does: find out what was given, and measure it by one evaluator."""

from pathlib import Path
from typing import Literal, cast, get_args

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
from ..methods.selfguided.train import STEPS
from ..recipe.load import PredictionKind, Recipe, SelfGuidedRecipe, WalkRecipe, load_recipe
from .run_predictor import RunInstances, RunPredictions, RunPredictor


def measure(
    path: str | Path,
    images: ImageSet,
    *,
    split: str | None = None,
    stage: str = "segmenter",
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
        stage: of a run: cam, walk, labels or segmenter.
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
        if stage not in get_args(PredictionKind):
            choices = ", ".join(get_args(PredictionKind))
            raise ConfigError(f"unknown stage '{stage}': choose of {choices}")
        predictor = _open_run(path, images, device)
        kind = cast(PredictionKind, stage)
        if kind == "labels" and kind not in predictor.recipe.ways() and (path / kind).is_dir():
            raise ConfigError(
                f"method {predictor.recipe.method} makes labels in training alone: measure those "
                f"that it has made, '{path / kind}', with `split` "
                f"{predictor.recipe.data.train_split}"
            )
        predictor.stages_of(kind)  # refuses a walk where there is none, before any image is read
        predictions = RunPredictions(predictor, kind, use_image_labels=use_image_labels)
        split = split or predictor.recipe.data.val_split
    else:
        folder = FolderPredictions(path, images.select(split), labels_used(path))
        predictions, path = folder, folder.folder
    if predictions.are_labels and (sweep or threshold is not None):
        raise ConfigError(
            f"{predictions.description}: these are label maps, which no threshold changes: leave "
            "`threshold` and `sweep` out, or measure score maps"
        )
    if threshold is None:
        threshold = _default_threshold(path, stage, recipe)
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
        path: a run of method irnet, or what `open_instance_predictions` takes.
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
    stage = path.parent if path.name in ("scores", *STEPS) else path
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


def _default_threshold(path: Path, stage: str, recipe: Recipe | None) -> float:
    if recipe is None:
        return 0.2
    is_run = (path / "recipe.toml").is_file()
    refined = stage in ("walk", "labels") if is_run else path.parent.name == "labels"
    if refined and isinstance(recipe, WalkRecipe):
        return recipe.walk.threshold
    if refined and isinstance(recipe, SelfGuidedRecipe):
        return recipe.selfguided.threshold
    return recipe.cam.threshold
