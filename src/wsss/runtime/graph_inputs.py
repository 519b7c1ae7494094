"""Inputs of the exported graphs, made from images and classes."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Layout = Literal["nhwc", "nchw"]
"""Of a graph's input `image`: channels last, as images are decoded, or first."""
UNKNOWN = -1.0
"""In the input `present`: the classifier decides."""


def image_input(images: NDArray[np.uint8], layout: Layout) -> NDArray[np.uint8]:
    """(B, H, W, 3) uint8 RGB in the layout of a graph."""
    if layout == "nhwc":
        return images
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def present_input(classes: Sequence[Sequence[int] | None], num_classes: int) -> NDArray[np.float32]:
    """(B, C) float32: 1 for the classes of each image, 0 for others; None leaves them to the
    classifier."""
    present = np.zeros((len(classes), num_classes), np.float32)
    for row, indices in zip(present, classes, strict=True):
        row[slice(None) if indices is None else list(indices)] = UNKNOWN if indices is None else 1
    return present


def label_inputs(
    images: NDArray[np.uint8],
    classes: Sequence[Sequence[int] | None],
    num_classes: int,
    layout: Layout,
    *,
    takes_classes: bool,
) -> dict[str, NDArray[Any]]:
    """Images of one size for `label` or `segmenter`.

    Args:
        images: (B, H, W, 3) uint8 RGB.
        classes: in each image; None leaves them to the classifier.
        takes_classes: whether the graph has the input `present`.
    """
    inputs: dict[str, NDArray[Any]] = {"image": image_input(images, layout)}
    if takes_classes:
        inputs["present"] = present_input(classes, num_classes)
    return inputs
