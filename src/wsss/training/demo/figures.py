"""The things that demo scenes are drawn from: outlines and patterns in a unit square.

Every class is a plain body, whose colours and textures it shares with all others, with markings of
its own on the head. A classifier needs only the markings, so class activation maps come out as
incomplete as on photographs, while edges and colour tell a random walk how far the body reaches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(n, 2) corners (x, y) in [-1, 1]; y points down."""
Plane = NDArray[np.float32]
Pattern = Callable[[Plane, Plane], NDArray[np.bool_]]
"""Local coordinates of pixels -> which of them are marked."""
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Figure:
    """One class of the demo.

    Attributes:
        parts: outlines whose union is the body.
        holes: outlines cut out of it.
        head: (x, y, radius) of the disc in which the body carries the pattern.
        colour: RGB of the markings; between them the body's own colour shows.
    """

    name: str
    parts: tuple[Points, ...]
    head: tuple[float, float, float]
    pattern: Pattern
    colour: Colour
    holes: tuple[Points, ...] = ()


def polygon(*corners: tuple[float, float]) -> Points:
    """An outline from its corners."""
    return np.array(corners, np.float64)


def ellipse(
    x: float, y: float, radius_x: float, radius_y: float, start: float = 0, end: float = 360
) -> Points:
    """An ellipse, or its sector between two angles in degrees (0 = right, 90 = down)."""
    angle = np.radians(np.linspace(start, end, 48))
    return np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], 1)


def star(arms: int, inner: float) -> Points:
    """A star of radius 1 whose notches lie at radius `inner`."""
    angle = np.arange(2 * arms) * np.pi / arms - np.pi / 2
    radius = np.where(np.arange(2 * arms) % 2 == 0, 1.0, inner)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def rings(x: Plane, y: Plane) -> NDArray[np.bool_]:
    """Concentric circles, like a target."""
    return np.asarray((np.hypot(x, y) * 2.5).astype(np.int64) % 2 == 0)


def checks(x: Plane, y: Plane) -> NDArray[np.bool_]:
    """A chessboard."""
    return np.asarray((np.floor(x * 2) + np.floor(y * 2)) % 2 == 0)


def stripes(x: Plane, y: Plane) -> NDArray[np.bool_]:
    """Straight bands."""
    return np.asarray(np.floor(x * 2.5) % 2 == 0)


def dots(x: Plane, y: Plane) -> NDArray[np.bool_]:
    """Spots on a grid."""
    return np.asarray(np.hypot(x * 1.5 % 1 - 0.5, y * 1.5 % 1 - 0.5) < 0.32)


def cross(x: Plane, y: Plane) -> NDArray[np.bool_]:
    """One upright cross."""
    return np.asarray(np.minimum(np.abs(x), np.abs(y)) < 0.28)


def chevrons(x: Plane, y: Plane) -> NDArray[np.bool_]:
    """Nested angles."""
    return np.asarray(np.floor((np.abs(x) + y) * 2) % 2 == 0)


FIGURES = (
    Figure(
        "fish",
        (ellipse(0.15, 0, 0.82, 0.5), polygon((-0.5, 0), (-1, -0.55), (-0.85, 0), (-1, 0.55))),
        (0.55, -0.05, 0.45),
        rings,
        (235, 20, 30),
    ),
    Figure(
        "tortoise",
        (
            ellipse(-0.1, 0.25, 0.85, 0.8, 180, 360),
            ellipse(0.75, 0.05, 0.3, 0.3),
            polygon((-0.75, 0.2), (-0.4, 0.2), (-0.45, 0.6), (-0.75, 0.6)),
            polygon((0.15, 0.2), (0.5, 0.2), (0.5, 0.6), (0.2, 0.6)),
        ),
        (0.7, 0.0, 0.42),
        checks,
        (255, 225, 20),
    ),
    Figure(
        "rocket",
        (
            polygon((-0.8, -0.28), (0.5, -0.28), (1, 0), (0.5, 0.28), (-0.8, 0.28)),
            polygon((-0.3, -0.28), (-0.95, -0.75), (-0.75, -0.28)),
            polygon((-0.3, 0.28), (-0.95, 0.75), (-0.75, 0.28)),
        ),
        (0.5, 0, 0.45),
        stripes,
        (20, 60, 255),
    ),
    Figure(
        "kite",
        (polygon((0, -0.95), (0.65, -0.2), (0, 1), (-0.65, -0.2)),),
        (0, -0.35, 0.42),
        cross,
        (255, 130, 0),
    ),
    Figure(
        "starfish",
        (star(5, 0.48),),
        (0, 0, 0.42),
        dots,
        (20, 235, 235),
    ),
    Figure(
        "bridge",
        (polygon((-1, -0.55), (1, -0.55), (1, 0.65), (-1, 0.65)),),
        (0, -0.3, 0.45),
        chevrons,
        (255, 90, 200),
        holes=(
            np.concatenate([ellipse(0, 0.4, 0.55, 0.45, 180, 360), [[0.55, 0.7], [-0.55, 0.7]]]),
        ),
    ),
)
"""The classes, in the order of their indices."""

DISTRACTORS: tuple[tuple[Points, ...], ...] = (
    (polygon((-0.8, 0.6), (0, -0.8), (0.8, 0.6)),),
    (polygon((-0.25, -0.8), (0.25, -0.8), (0.25, 0.8), (-0.25, 0.8)),),
    (
        polygon((-0.8, -0.2), (0.8, -0.2), (0.8, 0.2), (-0.8, 0.2)),
        polygon((-0.2, -0.8), (0.2, -0.8), (0.2, 0.8), (-0.2, 0.8)),
    ),
    (ellipse(0, 0, 0.6, 0.6),),
)
"""Outlines of things that belong to no class; coloured like bodies."""

BODY_COLOURS: tuple[Colour, ...] = (
    (125, 65, 55),
    (130, 100, 55),
    (70, 105, 65),
    (55, 100, 110),
    (70, 80, 130),
    (110, 70, 115),
    (85, 85, 90),
    (145, 105, 95),
)
"""RGB of bodies and distractors, whatever the class: duller than heads, darker than backgrounds."""

BACKGROUND_COLOURS: tuple[Colour, ...] = (
    (180, 175, 165),
    (190, 195, 200),
    (165, 178, 165),
    (205, 195, 172),
    (160, 168, 185),
    (190, 172, 170),
)
"""RGB of pale backgrounds."""
