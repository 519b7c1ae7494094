"""How things of demo scenes are drawn: where they lie, which pixels they fill, how they look."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .figures import BACKGROUND_COLOURS, BODY_COLOURS, DISTRACTORS, Colour, Figure, Plane, Points

MARGIN = 0.66
"""Share of its radius that a figure keeps from the image's border."""


@dataclass(frozen=True)
class Pose:
    """Where a figure lies: unit coordinates -> pixels.

    Attributes:
        centre: (x, y) in pixels.
        radius: in pixels.
        angle: in radians, clockwise.
    """

    centre: tuple[float, float]
    radius: float
    angle: float
    mirrored: bool

    def to_pixels(self, points: Points) -> NDArray[np.int32]:
        """(n, 2) corners in the unit square -> whole pixels (x, y)."""
        x, y = points.T
        x = -x if self.mirrored else x
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turned = np.stack([cos * x - sin * y, sin * x + cos * y], 1) * self.radius
        return np.rint(turned + self.centre).astype(np.int32)

    def to_unit(self, size: tuple[int, int]) -> tuple[Plane, Plane]:
        """(H, W) each: x and y of every pixel in the unit square."""
        rows, columns = np.indices(size, np.float32)
        dx, dy = (columns - self.centre[0]) / self.radius, (rows - self.centre[1]) / self.radius
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        x, y = cos * dx + sin * dy, -sin * dx + cos * dy
        return (-x if self.mirrored else x), y


def random_pose(
    generator: np.random.Generator, size: tuple[int, int], radii: tuple[float, float]
) -> Pose:
    """Anywhere, with two thirds of the radius inside the image; radii in shorter sides."""
    height, width = size
    radius = generator.uniform(*radii) * min(size)
    margin = MARGIN * radius
    return Pose(
        (generator.uniform(margin, width - margin), generator.uniform(margin, height - margin)),
        radius,
        generator.uniform(-0.6, 0.6),
        bool(generator.integers(2)),
    )


def shape_of(figure: Figure, pose: Pose, size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) pixels of a figure."""
    return _fill(figure.parts, pose, size) & ~_fill(figure.holes, pose, size)


def head_of(figure: Figure, pose: Pose, size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) pixels of the disc around a figure's head."""
    x, y = pose.to_unit(size)
    centre_x, centre_y, radius = figure.head
    return np.asarray(np.hypot(x - centre_x, y - centre_y) <= radius)


def paint_distractors(
    generator: np.random.Generator, canvas: Plane, radii: tuple[float, float], *, rims: bool = False
) -> None:
    """None to three things of no class."""
    size = (canvas.shape[0], canvas.shape[1])
    for _ in range(generator.integers(0, 4)):
        outline = DISTRACTORS[generator.integers(len(DISTRACTORS))]
        pose = random_pose(generator, size, radii)
        shape = _fill(outline, pose, size)
        paint_body(generator, canvas, shape, pose)
        if rims:
            paint_rim(generator, canvas, shape)


def paint_body(
    generator: np.random.Generator,
    canvas: Plane,
    shape: NDArray[np.bool_],
    pose: Pose,
    colours: Sequence[Colour] = BODY_COLOURS,
) -> None:
    """One colour with a weak texture and shading, the same choice for every class."""
    x, y = pose.to_unit((shape.shape[0], shape.shape[1]))
    colour = _vary(generator, colours)
    texture = np.sin(generator.uniform(8, 16) * (x if generator.integers(2) else y))
    if generator.integers(2):
        texture *= np.sin(generator.uniform(8, 16) * (x + y))
    shade = 1 + generator.uniform(0.04, 0.1) * texture - 0.12 * y
    canvas[shape] = (shade[..., None] * colour)[shape]


def paint_head(
    generator: np.random.Generator,
    canvas: Plane,
    head: NDArray[np.bool_],
    figure: Figure,
    pose: Pose,
) -> None:
    """The markings of a figure on the pixels of its head."""
    x, y = pose.to_unit((head.shape[0], head.shape[1]))
    centre_x, centre_y, radius = figure.head
    marked = head & figure.pattern((x - centre_x) / radius, (y - centre_y) / radius)
    canvas[marked] = _vary(generator, (figure.colour,), 12)


def paint_rim(generator: np.random.Generator, canvas: Plane, shape: NDArray[np.bool_]) -> None:
    """A shadow along the border of a shape, inside of it."""
    depth = cv2.distanceTransform(shape.astype(np.uint8), cv2.DIST_L2, 3)
    width = generator.uniform(1.5, 2.5)
    rim = shape & (depth <= width)
    canvas[rim] *= generator.uniform(0.45, 0.7)


def paint_background(generator: np.random.Generator, size: tuple[int, int]) -> Plane:
    """(H, W, 3) float32: two muted colours along a slope, clouds, and sometimes a weave."""
    rows, columns = np.indices(size, np.float32)
    angle = generator.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * columns / size[1] + np.sin(angle) * rows / size[0]
    share = (slope - slope.min()) / (slope.max() - slope.min())
    first, second = _vary(generator, BACKGROUND_COLOURS), _vary(generator, BACKGROUND_COLOURS)
    canvas = first + share[..., None] * (second - first)
    for cells, amount in ((4, 14), (16, 7)):
        coarse = generator.normal(0, amount, (cells, cells)).astype(np.float32)
        canvas += cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)[..., None]
    if generator.integers(2):
        pitch = generator.uniform(0.3, 0.9)
        canvas += (6 * np.sin(pitch * columns) * np.sin(pitch * rows))[..., None]
    return np.asarray(canvas, np.float32)


def add_noise(generator: np.random.Generator, canvas: Plane) -> NDArray[np.uint8]:
    """The canvas as a camera sees it: (H, W, 3) uint8."""
    noisy = canvas + generator.normal(0, 5, canvas.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _fill(outlines: Sequence[Points], pose: Pose, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels inside any of the outlines, without half-covered ones."""
    filled = np.zeros(size, np.uint8)
    for outline in outlines:
        cv2.fillPoly(filled, [pose.to_pixels(outline)], 1, cv2.LINE_8)
    return filled.astype(bool)


def _vary(
    generator: np.random.Generator, colours: Sequence[Colour], amount: float = 15
) -> NDArray[np.float32]:
    chosen = np.asarray(colours[int(generator.integers(len(colours)))], np.float32)
    return (chosen + generator.uniform(-amount, amount, 3)).astype(np.float32)
