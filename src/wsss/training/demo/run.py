"""A whole method on a small generated image set, from nothing to a report in minutes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ArtifactError, ConfigError
from ...runtime.io.progress import SILENT, Progress
from ..data.readers import read_image_set
from ..methods import METHODS, open_method
from ..methods.contract import Demo, DemoFigure
from ..pipeline import train
from ..predict.run_report import write_run_report
from ..recipes import load_recipe
from .files import SceneMaker, write_demo_scenes
from .scenes import draw_scene
from .touching import draw_touching_scene

TRAIN_IMAGES = 240
VAL_IMAGES = 60


SCENES: dict[str, SceneMaker] = {"apart": draw_scene, "touching": draw_touching_scene}
"""What a method may be shown on; see `Method.demo`."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured, in per cent, and where everything is.

    CAMs, seeds, labels and instances are measured on the training images, with their image-level
    labels; the segmenter on validation images, without.

    Attributes:
        figures: by `DemoFigure`, those that the run has; several values where a figure has several.
    """

    figures: Mapping[DemoFigure, float | tuple[float, ...]]
    data: str
    run: str
    report: str

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        figures = {figure.key: value for figure, value in self.figures.items()}
        return {**figures, "data": self.data, "run": self.run, "report": self.report}


def run_demo(
    out: Path,
    *,
    method: str = METHODS[0],
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> DemoResult:
    """Draw an image set, train the method's recipe on it from scratch, measure, report.

    Args:
        out: gets `data/` and `run/`; an interrupted demo continues there.
        method: one of `METHODS`.
        seed: of scenes and training.

    Raises:
        ConfigError: no such method.
        ArtifactError: `out` holds something else.
    """
    if method not in METHODS:
        raise ConfigError(f"no demo of method '{method}': choose one of {', '.join(METHODS)}")
    demo = open_method(method).demo
    data, run = out / "data", out / "run"
    _require_demo(out, run, method, overwrite)
    progress.note(f"drawing {TRAIN_IMAGES + VAL_IMAGES} scenes")
    write_demo_scenes(data, train=TRAIN_IMAGES, val=VAL_IMAGES, seed=seed, draw=SCENES[demo.scenes])
    images = read_image_set(data)
    recipe = load_recipe(demo.recipe, [f"seed={seed}"])
    result = train(recipe, images, run, device=device, overwrite=overwrite, progress=progress)
    report = write_run_report(run, images, device=device, progress=progress)
    measured = {
        stage: {key: value for key, value in figures.items() if value is not None}
        for stage, figures in result.figures.items()
    }
    return DemoResult(_figures(demo, measured), str(data), str(run), str(report))


def _figures(
    demo: Demo, measured: Mapping[str, Mapping[str, float]]
) -> dict[DemoFigure, float | tuple[float, ...]]:
    """What was measured of the figures that the method shows."""
    figures: dict[DemoFigure, float | tuple[float, ...]] = {}
    for each in demo.figures:
        found = measured.get(each.stage, {})
        if isinstance(each.figure, str):
            if each.figure in found:
                figures[each] = found[each.figure]
        elif values := tuple(found[key] for key in each.figure if key in found):
            figures[each] = values
    return figures


def _require_demo(out: Path, run: Path, method: str, overwrite: bool) -> None:
    """The place is free, or holds a demo of the method; scenes of another one would be lost."""
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"'{out}' is a file: choose a folder for `out`")
    if out.is_dir() and any(item.name not in ("data", "run") for item in out.iterdir()):
        raise ArtifactError(f"'{out}' is not empty and holds no demo: choose another `out`")
    if (run / "recipe.toml").is_file() and not overwrite:
        found = load_recipe(run / "recipe.toml").method
        if found != method:
            raise ArtifactError(
                f"'{out}' holds a demo of {found}: choose another `out`, or `overwrite` it"
            )
