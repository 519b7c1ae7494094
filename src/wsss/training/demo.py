"""The whole method on a small generated image set, from nothing to a report in minutes."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from ..runtime.progress import SILENT, Progress
from .data.readers import read_image_set
from .demo_set.scenes import write_demo_scenes
from .pipeline import train
from .recipe import load_recipe
from .report.run import write_run_report

TRAIN_IMAGES = 240
VAL_IMAGES = 60


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured (mIoU in per cent) and where everything lies.

    CAMs and labels are measured on the training images, with their image-level labels; the
    segmenter on validation images, without.
    """

    cam_miou: float
    walk_miou: float
    label_miou: float
    segmenter_miou: float
    data: str
    run: str
    report: str

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self)


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> DemoResult:
    """Draw an image set, train the recipe `demo` on it from scratch, measure, report.

    Args:
        out: gets `data/` and `run/`; an interrupted demo continues there.
        seed: of scenes and training.

    Raises:
        ArtifactError: `out` holds something else.
    """
    data, run = out / "data", out / "run"
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"'{out}' is a file: give --out a folder")
    if out.is_dir() and any(item.name not in ("data", "run") for item in out.iterdir()):
        raise ArtifactError(f"'{out}' is not empty and holds no demo: choose another --out")
    progress.note(f"drawing {TRAIN_IMAGES + VAL_IMAGES} scenes")
    write_demo_scenes(data, train=TRAIN_IMAGES, val=VAL_IMAGES, seed=seed)
    images = read_image_set(data)
    recipe = load_recipe("demo", [f"seed={seed}"])
    result = train(recipe, images, run, device=device, overwrite=overwrite, progress=progress)
    report = write_run_report(run, images, progress=progress)
    return DemoResult(
        cam_miou=result.figures["cam"]["miou"],
        walk_miou=result.figures["labels"]["walk_miou"],
        label_miou=result.figures["labels"]["miou"],
        segmenter_miou=result.figures["segmenter"]["miou"],
        data=str(data),
        run=str(run),
        report=str(report),
    )
