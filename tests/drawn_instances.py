"""Rectangles of two classes that touch and overlap: as photographs, and as a VOC devkit.

What `colour_model.ColourModel` sees in a photograph is the truth, moved by a pixel or two.
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsss.runtime.instances.instance_map import InstanceMap
from wsss.runtime.io.image_io import write_label_map

CLASSES = ("cat", "dog")
SIZES = ((40, 60), (37, 49))
LISTS = {"train": 6, "val": 5}


def scene(generator: np.random.Generator, size: tuple[int, int], most: int = 7) -> InstanceMap:
    """Up to so many rectangles, later ones over earlier ones; each with a pixel at least."""
    height, width = size
    numbers = np.zeros(size, np.uint16)
    for number in range(1, int(generator.integers(0, most + 1)) + 1):
        top, left = int(generator.integers(0, height - 5)), int(generator.integers(0, width - 5))
        rows, columns = (int(side) for side in generator.integers(5, 25, 2))
        numbers[top : top + rows, left : left + columns] = number
    shown, places = np.unique(np.append(0, numbers), return_inverse=True)
    count = len(shown) - 1
    return InstanceMap(
        places[1:].reshape(size).astype(np.uint16),
        generator.integers(0, len(CLASSES), count),
        (generator.integers(1, 256, count) / 255).astype(np.float32),
    )


def moved(found: InstanceMap, generator: np.random.Generator) -> InstanceMap:
    """The same instances, shifted by up to three pixels each way; what leaves comes in again."""
    shift = tuple(int(step) for step in generator.integers(-3, 4, 2))
    return InstanceMap(np.roll(found.ids, shift, (0, 1)), found.classes, found.scores)


def photograph(found: InstanceMap) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 in which `ColourModel` finds just these."""
    objects = np.append(0, np.arange(len(found)) + 1)[found.ids]
    scores = np.append(0, np.rint(found.scores * 255))[found.ids]
    return np.stack((found.label_map() * 51, objects, scores), -1).astype(np.uint8)


def write_scenes(devkit: Path) -> dict[str, tuple[InstanceMap, InstanceMap]]:
    """A devkit with void pixels in its truth, and what a model would find.

    Returns:
        By name of the image its truth without the void pixels, and what the photograph shows.
    """
    scenes = {}
    for split, count in LISTS.items():
        for number in range(count):
            generator = np.random.default_rng([number, len(split)])
            truth = scene(generator, SIZES[number % 2])
            shown = moved(truth, generator)
            name = f"{split}_{number}"
            scenes[name] = (truth, shown)
            path = devkit / "JPEGImages" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", photograph(shown)[..., ::-1])[1].tobytes())
            void = np.zeros(truth.ids.shape, bool)
            void[:, :2] = True
            write_label_map(
                devkit / "SegmentationObject" / f"{name}.png",
                np.where(void, 255, truth.ids).astype(np.uint8),
            )
            write_label_map(
                devkit / "SegmentationClass" / f"{name}.png",
                np.where(void, 255, truth.label_map()).astype(np.uint8),
            )
        lists = devkit / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        names = [name for name in scenes if name.startswith(split)]
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (devkit / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return scenes
