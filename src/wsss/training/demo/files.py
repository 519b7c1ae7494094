"""A small image set that needs no download: drawn scenes with exact masks, in VOC layout."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError
from ...runtime.io.files import atomic_write_bytes
from ...runtime.io.image_io import write_label_map
from .figures import FIGURES
from .scenes import Scene, draw_scene

DEMO_CLASSES = tuple(figure.name for figure in FIGURES)
MIN_SIDE = 64
"""Pixels; in smaller scenes the patterns on the heads melt."""

SceneMaker = Callable[[np.random.Generator, tuple[int, int], int], Scene]
"""Draws a scene of a size, in which a given class occurs."""


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
