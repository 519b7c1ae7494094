"""Scenes for instances: groups of objects of one class that touch, so that their masks grow
together, in which only a rim, a shade and markings of its own tell one object from the next."""

import numpy as np
from numpy.typing import NDArray

from .drawing import (
    MARGIN,
    Pose,
    paint_background,
    paint_distractors,
    paint_rim,
    random_pose,
    shape_of,
)
from .figures import BODY_COLOURS, FIGURES, Plane
from .scenes import DrawnObject, Scene, add_object, finish_scene

_RADII = (0.24, 0.34)
"""Of objects, in shorter sides of the image."""
_GROUP_SIZES, _SHARES = (1, 2, 3), (0.35, 0.45, 0.2)
_EMPTY, _SECOND = 0.12, 0.3
_MOST_HIDDEN = 0.15
_OVERLAP = (0.02, 0.1)
"""Range of the share of an object that lies over its neighbour."""
_ATTEMPTS = 20


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
    """A pose at the last of the group, or free of all objects where there is none yet."""
    for _ in range(_ATTEMPTS):
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
