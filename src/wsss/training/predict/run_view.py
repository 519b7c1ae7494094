"""A run as its pages show it: the folder, what has finished in it, and its networks."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ArtifactError
from ...runtime.io.progress import Progress
from ..data.image_set import ImageSet
from ..engine.devices import choose_device
from ..engine.run import Run, read_stage
from ..methods import open_method
from ..methods.contract import Method
from ..recipes import load_recipe
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
