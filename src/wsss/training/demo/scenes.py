"""Scenes of the demo, with exact masks.

`draw_scene` draws one to three objects apart. `draw_touching_scene` draws groups of objects of one
class that touch, so that their masks grow together: only a rim, a shade and markings of its own
tell one object from the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .drawing import (
    MARGIN,
    Pose,
    add_noise,
    head_of,
    paint_background,
    paint_body,
    paint_distractors,
    paint_head,
    paint_rim,
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


_RADII = (0.24, 0.34)
"""Of objects, in shorter sides of the image."""
_GROUP_SIZES, _SHARES = (1, 2, 3), (0.35, 0.45, 0.2)
_EMPTY, _SECOND = 0.12, 0.3
_MOST_HIDDEN = 0.15
_OVERLAP = (0.02, 0.1)
"""Range of the share of an object that lies over its neighbour."""
_GROUP_ATTEMPTS = 20


def draw_touching_scene(
    generator: np.random.Generator, size: tuple[int, int], first_class: int
) -> Scene:
    """One scene of a group of a given class, sometimes a second group, among distractors.

    Three groups of four have two or three objects, each of which touches another one.
    """
    canvas = paint_background(generator, size)
    paint_distractors(generator, canvas, (0.1, 0.18), rims=True)
    objects: list[DrawnObject] = []
    if generator.random() < _EMPTY:
        return finish_scene(generator, canvas, objects)
    _add_group(generator, canvas, objects, first_class)
    if generator.random() < _SECOND:
        _add_group(generator, canvas, objects, int(generator.integers(len(FIGURES))))
    return finish_scene(generator, canvas, objects)


def _add_group(
    generator: np.random.Generator, canvas: Plane, objects: list[DrawnObject], label: int
) -> None:
    """Draw a group where there is room; fewer objects where there is less."""
    size = (canvas.shape[0], canvas.shape[1])
    # Half of the groups are of one colour, as a herd is.
    herd = generator.integers(len(BODY_COLOURS))
    colours = BODY_COLOURS if generator.integers(2) else (BODY_COLOURS[herd],)
    group: list[DrawnObject] = []
    radius = generator.uniform(*_RADII)
    for _ in range(generator.choice(_GROUP_SIZES, p=_SHARES)):
        radii = (0.9 * radius, 1.1 * radius)
        pose = _place(generator, size, objects, group, label, radii)
        if pose is None:
            return
        group.append(add_object(generator, canvas, objects, label, pose, colours))
        paint_rim(generator, canvas, group[-1].shape)


def _place(
    generator: np.random.Generator,
    size: tuple[int, int],
    objects: list[DrawnObject],
    group: list[DrawnObject],
    label: int,
    radii: tuple[float, float],
) -> Pose | None:
    """Find a pose at the last of the group, or free of all objects where there is none yet."""
    for _ in range(_GROUP_ATTEMPTS):
        pose = random_pose(generator, size, radii)
        if group:
            moved = _beside(generator, pose, group[-1].shape, label, size)
            if moved is None:
                continue
            pose = moved
        shape = shape_of(FIGURES[label], pose, size)
        strangers = [other for other in objects if all(other is not own for own in group)]
        if any((other.shape & shape).any() for other in strangers):
            continue
        if not any(own.is_hidden_by(shape, _MOST_HIDDEN) for own in group):
            return pose
    return None


def _beside(
    generator: np.random.Generator,
    pose: Pose,
    neighbour: NDArray[np.bool_],
    label: int,
    size: tuple[int, int],
) -> Pose | None:
    """The pose, moved from a random side towards a neighbour until it lies a little over it."""
    rows, columns = neighbour.nonzero()
    direction = generator.uniform(0, 2 * np.pi)
    overlap = generator.uniform(*_OVERLAP)
    margin = MARGIN * pose.radius
    for distance in np.linspace(2.2, 0.4, 28) * pose.radius:
        x = columns.mean() + distance * np.cos(direction)
        y = rows.mean() + distance * np.sin(direction)
        near = Pose((float(x), float(y)), pose.radius, pose.angle, pose.mirrored)
        shape = shape_of(FIGURES[label], near, size)
        if (shape & neighbour).sum() > overlap * shape.sum():
            inside = margin <= x <= size[1] - margin and margin <= y <= size[0] - margin
            return near if inside else None
    return None
