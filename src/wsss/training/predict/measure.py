"""What `wsss eval` does: find out what was given, and measure it by one evaluator."""

from pathlib import Path
from typing import Literal, cast

from ...errors import ConfigError
from ...runtime.bulk.formats.image_files import FOLDER as MASKS
from ...runtime.bulk.job import JOB, read_job
from ...runtime.io.progress import SILENT, Progress
from ...runtime.refine.geometry import Align
from ..data.image_set import ImageSet
from ..engine.run import read_stage
from ..evaluation.instance_predictions import open_instance_predictions
from ..evaluation.instances import InstancePredictions, InstanceReport, evaluate_instances
from ..evaluation.miou import EvalReport, FolderPredictions, Predictions
from ..evaluation.miou import evaluate as evaluate_predictions
from ..methods import open_method
from ..recipe.recipe import Recipe
from ..recipes import load_recipe
from .run_predictor import RunInstances, RunPredictions, RunPredictor


def evaluate(
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
    """Measure the networks of a run, or stored predictions, by mean IoU.

    Args:
        path: a run; or a folder of predictions: a job of `label_images`, NAME.png label maps or
            NAME.npz score maps.
        images: image set with masks, from `read_image_set`.
        split: list of the image set to measure on; default: the validation list of the recipe for
            a run, all images for a folder.
        mode: output of a run to measure: segmenter (the default; uses no image-level labels), cam,
            walk, or labels (walk and dense CRF).
        use_image_labels: give the image-level labels to cam, walk and labels; if False, the
            classifier finds the classes.
        threshold: background score in [0, 1] that competes with score maps; default: that of the
            recipe, 0.2 without one.
        sweep: measure thresholds 0.05 to 0.95 and report the best.
        align: how the grid of score maps lies on the pixels, `reference` or `corners`; default:
            that of the recipe.
        device: auto, cpu or cuda; auto takes a GPU if there is one.
        progress: receives the progress; the default shows nothing.

    Returns:
        EvalReport: `miou` and `iou` of each class in per cent, with all settings they depend on.

    Raises:
        ArtifactError: `path` holds neither a run nor predictions, or some are missing.
        ConfigError: an argument does not fit the run, or the classes of run and images differ.
        DataError: an image has no mask, or the mask cannot be used.
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
                f"that it has made, '{path / mode}', with `split` "
                f"{predictor.recipe.data.train_split}"
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
            "`threshold` and `sweep` out, or measure score maps"
        )
    if threshold is None:
        threshold = _default_threshold(path, mode, recipe)
    return evaluate_predictions(
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
