"""Scenes of the demo, with exact masks: one to three objects that lie where there is room."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .drawing import (
    Pose,
    add_noise,
    head_of,
    paint_background,
    paint_body,
    paint_distractors,
    paint_head,
    random_pose,
    shape_of,
)
from .figures import BODY_COLOURS, FIGURES, Colour, Plane

MIN_VISIBLE = 0.005
"""Share of the image that a class must cover to be among the image's labels."""
MAX_HIDDEN = 0.35
"""Share of an object, and of its head, that others may cover."""

_ATTEMPTS = 12


@dataclass(frozen=True)
class Scene:
    """One drawn image.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8, 0 = background, 1.. = index in `DEMO_CLASSES` + 1.
        ids: (H, W) uint8, 0 = background, 1.. = number of the object.
        labels: 0-based classes that cover at least `MIN_VISIBLE` of the image, ascending.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    ids: NDArray[np.uint8]
    labels: tuple[int, ...]


@dataclass
class DrawnObject:
    """Pixels of a drawn object, and of its head, that can be seen."""

    label: int
    shape: NDArray[np.bool_]
    head: NDArray[np.bool_]

    def is_hidden_by(self, shape: NDArray[np.bool_], most: float = MAX_HIDDEN) -> bool:
        """Whether too much would vanish: without its head nobody could name the class."""
        return any(
            (shape & visible).sum() > most * visible.sum() for visible in (self.shape, self.head)
        )

    def cover(self, shape: NDArray[np.bool_]) -> None:
        """Something is drawn over it."""
        self.shape &= ~shape
        self.head &= ~shape


def draw_scene(generator: np.random.Generator, size: tuple[int, int], first_class: int) -> Scene:
    """One scene of one to three objects, the first of a given class, among distractors."""
    canvas = paint_background(generator, size)
    paint_distractors(generator, canvas, (0.1, 0.2))
    others = generator.integers(0, len(FIGURES), generator.choice([0, 1, 2], p=[0.45, 0.4, 0.15]))
    objects: list[DrawnObject] = []
    for label in (first_class, *others.tolist()):
        pose = _free_pose(generator, size, objects, label)
        if pose is not None:
            add_object(generator, canvas, objects, label, pose)
    return finish_scene(generator, canvas, objects)


def add_object(
    generator: np.random.Generator,
    canvas: Plane,
    objects: list[DrawnObject],
    label: int,
    pose: Pose,
    colours: Sequence[Colour] = BODY_COLOURS,
) -> DrawnObject:
    """Draw one object over those that are there."""
    figure, size = FIGURES[label], (canvas.shape[0], canvas.shape[1])
    shape = shape_of(figure, pose, size)
    head = head_of(figure, pose, size) & shape
    for other in objects:
        other.cover(shape)
    paint_body(generator, canvas, shape, pose, colours)
    paint_head(generator, canvas, head, figure, pose)
    objects.append(DrawnObject(label, shape, head))
    return objects[-1]


def finish_scene(
    generator: np.random.Generator, canvas: Plane, objects: list[DrawnObject]
) -> Scene:
    """The image of a canvas, and what is in it."""
    image = add_noise(generator, canvas)
    mask, ids = np.zeros(image.shape[:2], np.uint8), np.zeros(image.shape[:2], np.uint8)
    for number, found in enumerate(objects, 1):
        mask[found.shape], ids[found.shape] = found.label + 1, number
    counts = np.bincount(mask.ravel(), minlength=len(FIGURES) + 1)[1:]
    labels = tuple(np.flatnonzero(counts >= MIN_VISIBLE * mask.size).tolist())
    return Scene(image, mask, ids, labels)


def _free_pose(
    generator: np.random.Generator,
    size: tuple[int, int],
    objects: list[DrawnObject],
    label: int,
) -> Pose | None:
    """Where an object hides no earlier one too much; None where there is no room."""
    for _ in range(_ATTEMPTS):
        pose = random_pose(generator, size, (0.26, 0.4))
        shape = shape_of(FIGURES[label], pose, size)
        if not any(other.is_hidden_by(shape) for other in objects):
            return pose
    return None
