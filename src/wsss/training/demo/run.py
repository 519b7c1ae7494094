"""A whole method on a small generated image set, from nothing to a report in minutes."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import ArtifactError, ConfigError
from ...runtime.io.progress import SILENT, Progress
from ..data.readers import read_image_set
from ..methods.selfguided.train import STEPS
from ..pipeline import train
from ..predict.run_report import write_run_report
from ..recipe.load import load_recipe
from .files import SceneMaker, write_demo_scenes
from .scenes import draw_scene
from .touching import draw_touching_scene

TRAIN_IMAGES = 240
VAL_IMAGES = 60


@dataclass(frozen=True)
class Demo:
    """What a method is shown on.

    Attributes:
        recipe: name of a shipped recipe.
        draw: makes the scenes.
    """

    recipe: str
    draw: SceneMaker


DEMOS = {
    "affinitynet": Demo("demo", draw_scene),
    "irnet": Demo("demo_irnet", draw_touching_scene),
    "cian": Demo("demo_cian", draw_scene),
    "sec": Demo("demo_sec", draw_scene),
    "selfguided": Demo("demo_selfguided", draw_scene),
}
"""By method."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured (mIoU and AP50 in per cent) and where everything lies.

    CAMs, seeds, labels and instances are measured on the training images, with their image-level
    labels; the segmenter on validation images, without. What the method does not make is None.

    Attributes:
        seed_miou: of pixels that the seeds decide, where the segmenter learns these.
        walk_miou: of CAMs that walked.
        step_mious: of the self-guided network's maps behind each step, each at its best threshold.
        first_round_miou: of the segmenter that made the labels, on validation images.
        instance_ap50: of the method's instances.
        boundary_instance_ap50: of connected parts of CAMs that walked within boundaries.
        cam_instance_ap50: of connected parts of the CAMs.
    """

    cam_miou: float
    segmenter_miou: float
    data: str
    run: str
    report: str
    seed_miou: float | None = None
    walk_miou: float | None = None
    step_mious: tuple[float, ...] | None = None
    label_miou: float | None = None
    first_round_miou: float | None = None
    instance_ap50: float | None = None
    boundary_instance_ap50: float | None = None
    cam_instance_ap50: float | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible; what the method does not make is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def run_demo(
    out: Path,
    *,
    method: str = "affinitynet",
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> DemoResult:
    """Draw an image set, train the method's recipe on it from scratch, measure, report.

    Args:
        out: gets `data/` and `run/`; an interrupted demo continues there.
        method: one of `DEMOS`.
        seed: of scenes and training.

    Raises:
        ConfigError: no such method.
        ArtifactError: `out` holds something else.
    """
    demo = DEMOS.get(method)
    if demo is None:
        raise ConfigError(f"no demo of method '{method}': choose one of {', '.join(DEMOS)}")
    data, run = out / "data", out / "run"
    _require_demo(out, run, method, overwrite)
    progress.note(f"drawing {TRAIN_IMAGES + VAL_IMAGES} scenes")
    write_demo_scenes(data, train=TRAIN_IMAGES, val=VAL_IMAGES, seed=seed, draw=demo.draw)
    images = read_image_set(data)
    recipe = load_recipe(demo.recipe, [f"seed={seed}"])
    result = train(recipe, images, run, device=device, overwrite=overwrite, progress=progress)
    report = write_run_report(run, images, device=device, progress=progress)
    measured = {
        stage: {key: value for key, value in figures.items() if value is not None}
        for stage, figures in result.figures.items()
    }
    labels, instances = (measured.get(name, {}) for name in ("labels", "instances"))
    seeds = {} if "labels" in measured else measured.get("seeds", {})
    return DemoResult(
        cam_miou=measured["cam"]["miou"],
        segmenter_miou=measured["segmenter"]["miou"],
        data=str(data),
        run=str(run),
        report=str(report),
        seed_miou=seeds.get("miou"),
        walk_miou=labels.get("walk_miou"),
        step_mious=tuple(labels[f"{s}_best_miou"] for s in STEPS if f"{s}_best_miou" in labels)
        or None,
        label_miou=labels.get("miou"),
        first_round_miou=measured.get("cian", {}).get("miou"),
        instance_ap50=instances.get("ap50"),
        boundary_instance_ap50=instances.get("boundary_ap50"),
        cam_instance_ap50=instances.get("cam_ap50"),
    )


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
