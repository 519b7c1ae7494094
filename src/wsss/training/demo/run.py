"""A whole method on a small generated image set, from nothing to a report in minutes."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, ConfigError
from ...runtime.io.files import atomic_write_bytes
from ...runtime.io.image_io import write_label_map
from ...runtime.io.progress import SILENT, Progress
from ..data.readers import read_image_set
from ..methods import METHODS, open_method
from ..methods.contract import Demo, DemoFigure
from ..pipeline import train
from ..predict.run_report import write_run_report
from ..recipes import load_recipe
from .figures import FIGURES
from .scenes import Scene, draw_scene, draw_touching_scene

TRAIN_IMAGES = 240
VAL_IMAGES = 60
SceneMaker = Callable[[np.random.Generator, tuple[int, int], int], Scene]
"""Draws a scene of a size, in which a given class occurs."""
SCENES: dict[str, SceneMaker] = {"apart": draw_scene, "touching": draw_touching_scene}
"""What a method may be shown on; see `Method.demo`."""
MIN_SIDE = 64
"""Pixels; in smaller scenes the patterns on the heads melt."""
DEMO_CLASSES = tuple(figure.name for figure in FIGURES)


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


def write_demo_scenes(
    root: Path,
    *,
    train: int,
    val: int,
    seed: int,
    size: tuple[int, int] = (160, 192),
    draw: SceneMaker = draw_scene,
) -> None:
    """Write an image set in VOC layout; the same arguments give the same bytes.

    An image depends on the seed, its list and its number alone, not on how many there are.

    Args:
        root: gets JPEGImages, SegmentationClass, SegmentationObject, ImageSets/Segmentation,
            labels.csv, classes.txt.
        train, val: images in each list, 0 or more; six in a row hold every class.
        size: (height, width) of every image in pixels, each at least `MIN_SIDE`.

    Raises:
        ConfigError: a negative count or seed, or a size that is too small.
        ArtifactError: the files cannot be written.
    """
    _check_arguments(train, val, seed, size)
    rows = ["file,labels"]
    for number, (split, count) in enumerate((("train", train), ("val", val))):
        names = [f"{split}_{index:04d}" for index in range(count)]
        for index, name in enumerate(names):
            generator = np.random.default_rng((seed, number, index))
            scene = draw(generator, size, index % len(FIGURES))
            _write_image(root / "JPEGImages" / f"{name}.png", scene.image)
            write_label_map(root / "SegmentationClass" / f"{name}.png", scene.mask)
            write_label_map(root / "SegmentationObject" / f"{name}.png", scene.ids)
            rows.append(f"{name}.png,{';'.join(DEMO_CLASSES[label] for label in scene.labels)}")
        _write_lines(root / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    _write_lines(root / "labels.csv", rows)
    _write_lines(root / "classes.txt", DEMO_CLASSES)


def _check_arguments(train: int, val: int, seed: int, size: tuple[int, int]) -> None:
    for name, value in (("train", train), ("val", val), ("seed", seed)):
        if value < 0:
            raise ConfigError(f"{name} is {value}, must be at least 0")
    if min(size) < MIN_SIDE:
        raise ConfigError(
            f"size is {size[0]} x {size[1]}, must be at least {MIN_SIDE} x {MIN_SIDE}"
        )


def _write_image(path: Path, image: NDArray[np.uint8]) -> None:
    _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    atomic_write_bytes(path, data.tobytes())


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    buffer = io.StringIO()
    for line in lines:
        buffer.write(f"{line}\n")
    atomic_write_bytes(path, buffer.getvalue().encode())
