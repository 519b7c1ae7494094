"""From the plane that wins each pixel to instances: 4-connected segments and their scores.

Shared by all ways to make instances, whatever their planes are. Source of areas and scores: IRNet
(Ahn, Cho, Kwak, CVPR 2019), its published code.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from .instance_map import InstanceMap

_MOST = int(np.iinfo(np.uint16).max)
"""Instances that the numbers of an `InstanceMap` can tell apart."""


def segments_of(
    winners: NDArray[np.int32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int64],
    *,
    min_area: float,
    keep_fragments: bool,
) -> InstanceMap:
    """Split what each plane wins into 4-connected segments, each an instance.

    Args:
        winners: (H, W): 0 background, p + 1 where plane p wins.
        scores: (H, W) in [0, 1], of the winning plane.
        classes: (P,) class index of each plane, 0-based.
        min_area: share of the image below which a segment is a fragment.
        keep_fragments: whether they stay as instances with score 0, or become background.

    Returns:
        Instances by plane, those of one plane by their first pixel, row by row. The score of a
        segment is the greatest one inside.

    Raises:
        DataError: more segments than an `InstanceMap` can number.
    """
    segments = equal_segments(winners)
    pixels = segments.ravel().nonzero()[0]
    owner = segments.ravel()[pixels] - 1
    count = int(owner.max(initial=-1)) + 1
    first = np.empty(count, np.int64)
    first[owner[::-1]] = pixels[::-1]  # the last to be written stays
    greatest = np.zeros(count, np.float32)
    np.maximum.at(greatest, owner, scores.ravel()[pixels])
    is_fragment = np.bincount(owner, minlength=count) < min_area * segments.size
    greatest[is_fragment] = 0
    plane = winners.ravel()[first] - 1
    order = np.lexsort((first, plane))
    if not keep_fragments:
        order = order[~is_fragment[order]]
    if len(order) > _MOST:
        raise DataError(
            f"the image falls into {len(order)} segments, an instance map holds {_MOST}: leave "
            "out fragments, or make the image smaller"
        )
    number_of = np.zeros(count + 1, np.uint16)
    number_of[order + 1] = np.arange(1, len(order) + 1)
    return InstanceMap(number_of[segments], classes[plane[order]], greatest[order])


def equal_segments(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """4-connected segments of equal labels, numbered from 1; 0 where the label is 0.

    One labelling serves all labels: a picture of twice the size has a dot for each pixel and,
    between two neighbours, a dot where their labels are equal.
    """
    height, width = labels.shape
    dots = np.zeros((2 * height - 1, 2 * width - 1), np.uint8)
    dots[::2, ::2] = labels != 0
    dots[1::2, ::2] = (labels[1:] == labels[:-1]) & (labels[1:] != 0)
    dots[::2, 1::2] = (labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] != 0)
    _, segments = cv2.connectedComponents(dots, connectivity=4)
    return np.ascontiguousarray(segments[::2, ::2])
