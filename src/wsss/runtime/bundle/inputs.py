"""Inputs of the exported graphs, made from images and classes."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..predictor import AnyOf

Layout = Literal["nhwc", "nchw"]
"""Of a graph's input `image`: channels last, as images are decoded, or first."""
UNKNOWN = -1.0
"""In the input `present`: the classifier decides, by the threshold of the run. 0: the class is
absent, 1: it is there; a number between is a threshold in place of the run's."""


def image_input(images: NDArray[np.uint8], layout: Layout) -> NDArray[np.uint8]:
    """(B, H, W, 3) uint8 RGB in the layout of a graph."""
    if layout == "nhwc":
        return images
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def present_input(
    classes: Sequence[Sequence[int] | None],
    num_classes: int,
    thresholds: Sequence[float] | None = None,
) -> NDArray[np.float32]:
    """(B, C) float32 for the input `present`: 1 for the classes of each image, 0 for others.

    Args:
        classes: in each image; None, and those of `AnyOf`, are left to the classifier.
        thresholds: probabilities from which it calls each class present, in (0, 1); None: that of
            the graph.
    """
    present = np.zeros((len(classes), num_classes), np.float32)
    for row, indices in zip(present, classes, strict=True):
        found = np.full(num_classes, UNKNOWN) if thresholds is None else np.asarray(thresholds)
        if indices is None:
            row[:] = found
        elif isinstance(indices, AnyOf):
            row[list(indices)] = found[list(indices)]
        else:
            row[list(indices)] = 1
    return present


def label_inputs(
    images: NDArray[np.uint8],
    classes: Sequence[Sequence[int] | None],
    num_classes: int,
    layout: Layout,
    *,
    takes_classes: bool,
    thresholds: Sequence[float] | None = None,
) -> dict[str, NDArray[Any]]:
    """Images of one size for `label` or `segmenter`.

    Args:
        images: (B, H, W, 3) uint8 RGB.
        classes: in each image; None, and those of `AnyOf`, are left to the classifier.
        takes_classes: whether the graph has the input `present`.
        thresholds: see `present_input`.
    """
    inputs: dict[str, NDArray[Any]] = {"image": image_input(images, layout)}
    if takes_classes:
        inputs["present"] = present_input(classes, num_classes, thresholds)
    return inputs
