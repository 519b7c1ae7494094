"""A small image set that needs no download: drawn scenes with exact masks, in VOC layout."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError
from ...runtime.files import atomic_write_bytes
from ...runtime.image_io import write_label_map
from .figures import (
    BACKGROUND_COLOURS,
    BODY_COLOURS,
    DISTRACTORS,
    FIGURES,
    Colour,
    Figure,
    Plane,
    Points,
)

DEMO_CLASSES = tuple(figure.name for figure in FIGURES)
MIN_SIDE = 64
"""Pixels; in smaller scenes the patterns on the heads melt."""
MIN_VISIBLE = 0.005
"""Share of the image that a class must cover to be among the image's labels."""

_MAX_HIDDEN = 0.35
_ATTEMPTS = 12


@dataclass(frozen=True)
class Scene:
    """One drawn image.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8, 0 = background, 1.. = index in `DEMO_CLASSES` + 1.
        labels: 0-based classes that cover at least `MIN_VISIBLE` of the image, ascending.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class _Pose:
    """Where a figure lies: unit coordinates -> pixels."""

    centre: tuple[float, float]
    radius: float
    angle: float
    mirrored: bool

    def to_pixels(self, points: Points) -> NDArray[np.int32]:
        x, y = points.T
        x = -x if self.mirrored else x
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turned = np.stack([cos * x - sin * y, sin * x + cos * y], 1) * self.radius
        return np.rint(turned + self.centre).astype(np.int32)

    def to_unit(self, size: tuple[int, int]) -> tuple[Plane, Plane]:
        rows, columns = np.indices(size, np.float32)
        dx, dy = (columns - self.centre[0]) / self.radius, (rows - self.centre[1]) / self.radius
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        x, y = cos * dx + sin * dy, -sin * dx + cos * dy
        return (-x if self.mirrored else x), y


@dataclass
class _Object:
    """Pixels of a drawn object, and of its head, that can be seen."""

    shape: NDArray[np.bool_]
    head: NDArray[np.bool_]

    def is_hidden_by(self, shape: NDArray[np.bool_]) -> bool:
        """Whether too much would vanish: without its head nobody could name the class."""
        return any(
            (shape & visible).sum() > _MAX_HIDDEN * visible.sum()
            for visible in (self.shape, self.head)
        )


def write_demo_scenes(
    root: Path, *, train: int, val: int, seed: int, size: tuple[int, int] = (160, 192)
) -> None:
    """Write an image set in VOC layout; the same arguments give the same bytes.

    An image depends on the seed, its list and its number alone, not on how many there are.

    Args:
        root: gets JPEGImages, SegmentationClass, ImageSets/Segmentation, labels.csv, classes.txt.
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
            scene = draw_scene(generator, size, first_class=index % len(FIGURES))
            _write_image(root / "JPEGImages" / f"{name}.png", scene.image)
            write_label_map(root / "SegmentationClass" / f"{name}.png", scene.mask)
            rows.append(f"{name}.png,{';'.join(DEMO_CLASSES[label] for label in scene.labels)}")
        _write_lines(root / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    _write_lines(root / "labels.csv", rows)
    _write_lines(root / "classes.txt", DEMO_CLASSES)


def draw_scene(generator: np.random.Generator, size: tuple[int, int], first_class: int) -> Scene:
    """One scene of one to three objects, the first of a given class, among distractors."""
    canvas = _background(generator, size)
    mask = np.zeros(size, np.uint8)
    for _ in range(generator.integers(0, 4)):
        outline = DISTRACTORS[generator.integers(len(DISTRACTORS))]
        pose = _random_pose(generator, size, (0.1, 0.2))
        _paint_body(generator, canvas, _fill(outline, pose, size), pose)
    others = generator.integers(0, len(FIGURES), generator.choice([0, 1, 2], p=[0.45, 0.4, 0.15]))
    objects: list[_Object] = []
    for label in (first_class, *others.tolist()):
        _add_object(generator, canvas, mask, objects, label)
    noisy = canvas + generator.normal(0, 5, canvas.shape)
    counts = np.bincount(mask.ravel(), minlength=len(FIGURES) + 1)[1:]
    labels = tuple(np.flatnonzero(counts >= MIN_VISIBLE * mask.size).tolist())
    return Scene(np.clip(np.rint(noisy), 0, 255).astype(np.uint8), mask, labels)


def _add_object(
    generator: np.random.Generator,
    canvas: Plane,
    mask: NDArray[np.uint8],
    objects: list[_Object],
    label: int,
) -> None:
    """Draw one object where it hides no earlier one too much; left out where there is no room."""
    figure, size = FIGURES[label], (mask.shape[0], mask.shape[1])
    for _ in range(_ATTEMPTS):
        pose = _random_pose(generator, size, (0.26, 0.4))
        shape = _fill(figure.parts, pose, size) & ~_fill(figure.holes, pose, size)
        head = _head(figure, pose, size) & shape
        if not any(other.is_hidden_by(shape) for other in objects):
            break
    else:
        return
    for other in objects:
        other.shape &= ~shape
        other.head &= ~shape
    objects.append(_Object(shape.copy(), head.copy()))
    _paint_body(generator, canvas, shape, pose)
    _paint_head(generator, canvas, head, figure, pose)
    mask[shape] = label + 1


def _random_pose(
    generator: np.random.Generator, size: tuple[int, int], radii: tuple[float, float]
) -> _Pose:
    """Anywhere, with two thirds of the radius inside the image; radii in shorter sides."""
    height, width = size
    radius = generator.uniform(*radii) * min(size)
    margin = 0.66 * radius
    return _Pose(
        (generator.uniform(margin, width - margin), generator.uniform(margin, height - margin)),
        radius,
        generator.uniform(-0.6, 0.6),
        bool(generator.integers(2)),
    )


def _fill(outlines: Sequence[Points], pose: _Pose, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels inside any of the outlines, without half-covered ones."""
    filled = np.zeros(size, np.uint8)
    for outline in outlines:
        cv2.fillPoly(filled, [pose.to_pixels(outline)], 1, cv2.LINE_8)
    return filled.astype(bool)


def _head(figure: Figure, pose: _Pose, size: tuple[int, int]) -> NDArray[np.bool_]:
    x, y = pose.to_unit(size)
    centre_x, centre_y, radius = figure.head
    return np.asarray(np.hypot(x - centre_x, y - centre_y) <= radius)


def _paint_body(
    generator: np.random.Generator, canvas: Plane, shape: NDArray[np.bool_], pose: _Pose
) -> None:
    """One colour with a weak texture and shading, the same choice for every class."""
    x, y = pose.to_unit((shape.shape[0], shape.shape[1]))
    colour = _vary(generator, BODY_COLOURS)
    texture = np.sin(generator.uniform(8, 16) * (x if generator.integers(2) else y))
    if generator.integers(2):
        texture *= np.sin(generator.uniform(8, 16) * (x + y))
    shade = 1 + generator.uniform(0.04, 0.1) * texture - 0.12 * y
    canvas[shape] = (shade[..., None] * colour)[shape]


def _paint_head(
    generator: np.random.Generator,
    canvas: Plane,
    head: NDArray[np.bool_],
    figure: Figure,
    pose: _Pose,
) -> None:
    x, y = pose.to_unit((head.shape[0], head.shape[1]))
    centre_x, centre_y, radius = figure.head
    marked = head & figure.pattern((x - centre_x) / radius, (y - centre_y) / radius)
    canvas[marked] = _vary(generator, (figure.colour,), 12)


def _vary(
    generator: np.random.Generator, colours: Sequence[Colour], amount: float = 15
) -> NDArray[np.float32]:
    chosen = np.asarray(colours[int(generator.integers(len(colours)))], np.float32)
    return (chosen + generator.uniform(-amount, amount, 3)).astype(np.float32)


def _background(generator: np.random.Generator, size: tuple[int, int]) -> Plane:
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
