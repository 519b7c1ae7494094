"""Random changes of a training image, joint with its label map.

Every draw comes from the generator that is passed in, so a sample depends on (seed, epoch,
position) alone: not on workers, processes or on where a killed run was resumed.
Sources: the released code of AffinityNet (order and ranges), torchvision's colour jitter (meaning).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ...runtime.io.palette import IGNORE_INDEX
from ..recipe.sections import Augmentation

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Crop:
    """A square training sample.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        labels: (S, S) uint8, IGNORE outside of the image; None where the task has no label map.
        inside: (top, left, bottom, right) of the part that shows the image; the rest is padding.
    """

    image: Image
    labels: NDArray[np.uint8] | None
    inside: tuple[int, int, int, int]


def augment(
    image: Image,
    labels: NDArray[np.uint8] | None,
    settings: Augmentation,
    generator: np.random.Generator,
) -> Crop:
    """Resize, flip, jitter and crop, in this order (methods of the paper's code).

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8 label map or None; resized by nearest neighbour only.
    """
    image, labels = _resize(image, labels, settings, generator)
    if settings.flip and generator.random() < 0.5:
        image = image[:, ::-1]
        labels = None if labels is None else labels[:, ::-1]
    if any(settings.jitter):
        image = jitter_colour(image, settings.jitter, generator)
    return _crop(image, labels, settings.crop_size, generator)


def _resize(
    image: Image,
    labels: NDArray[np.uint8] | None,
    settings: Augmentation,
    generator: np.random.Generator,
) -> tuple[Image, NDArray[np.uint8] | None]:
    height, width = image.shape[:2]
    if settings.long_side is not None:
        low, high = settings.long_side
        factor = int(generator.integers(low, high + 1)) / max(height, width)
    elif settings.scale is not None:
        factor = generator.uniform(*settings.scale)
    else:
        return image, labels
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    method = cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA
    image = np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)
    return image, None if labels is None else resize_labels(labels, (size[1], size[0]))


def resize_labels(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Nearest-neighbour resize that takes the pixel under each target pixel's centre.

    cv2's and torch's nearest take the pixel under the corner instead, which shifts labels.
    """
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return np.asarray(labels[rows[:, None], columns], np.uint8)


def jitter_colour(
    image: Image, strength: tuple[float, float, float, float], generator: np.random.Generator
) -> Image:
    """Change brightness, contrast, saturation and hue in random order.

    Args:
        strength: half-widths of the ranges; factors are drawn from [1 - s, 1 + s], the hue shift
            from [-s, s] in turns of the colour circle.
    """
    brightness, contrast, saturation, hue = (generator.uniform(-s, s) for s in strength)
    result = image.astype(np.float32)
    for change in generator.permutation(4):
        if change == 0:
            result *= 1 + brightness
        elif change == 1:
            result = _blend(result, np.float32(_grey(result).mean()), contrast)
        elif change == 2:
            result = _blend(result, _grey(result)[..., None], saturation)
        else:
            result = _shift_hue(result, hue)
        np.clip(result, 0, 255, out=result)
    return np.rint(result).astype(np.uint8)


def _grey(image: NDArray[np.float32]) -> NDArray[np.float32]:
    return image @ np.array([0.299, 0.587, 0.114], np.float32)


def _blend(
    image: NDArray[np.float32], base: NDArray[np.float32] | np.float32, amount: float
) -> NDArray[np.float32]:
    return np.asarray(image * np.float32(1 + amount) - base * np.float32(amount), np.float32)


def _shift_hue(image: NDArray[np.float32], turns: float) -> NDArray[np.float32]:
    hsv = cv2.cvtColor(image / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + turns * 360) % 360
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255, np.float32)


def _crop(
    image: Image,
    labels: NDArray[np.uint8] | None,
    side: int,
    generator: np.random.Generator,
) -> Crop:
    """Cut a square at a random place; a smaller image lies at a random place of it."""
    source, target = [], []
    for length in image.shape[:2]:
        spare = length - side
        offset = int(generator.integers(0, abs(spare) + 1))
        start, place = (offset, 0) if spare > 0 else (0, offset)
        covered = min(length, side)
        source.append(slice(start, start + covered))
        target.append(slice(place, place + covered))
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[target[0], target[1]] = image[source[0], source[1]]
    canvas_labels = None
    if labels is not None:
        canvas_labels = np.full((side, side), IGNORE_INDEX, np.uint8)
        canvas_labels[target[0], target[1]] = labels[source[0], source[1]]
    inside = (target[0].start, target[1].start, target[0].stop, target[1].stop)
    return Crop(canvas, canvas_labels, inside)
