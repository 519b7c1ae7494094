"""From the plane that wins each pixel to instances: 4-connected segments and their scores.

Shared by all ways to make instances, whatever their planes are. Source of areas and scores: IRNet
(Ahn, Cho, Kwak, CVPR 2019), its published code.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from .instance_map import InstanceMap

_MOST = int(np.iinfo(np.uint16).max)
"""Instances that the numbers of an `InstanceMap` can tell apart."""
_PIXELS_AT_ONCE = 2**22
"""Of a huge image; some 40 bytes are taken for each of them."""


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
    count = int(segments.max(initial=0))
    first, area = np.empty(count, np.int64), np.zeros(count, np.int64)
    greatest = np.zeros(count, np.float32)
    for rows in reversed(list(row_strips(segments.shape, _PIXELS_AT_ONCE))):
        pixels = segments[rows].ravel().nonzero()[0]
        owner = segments[rows].ravel()[pixels] - 1
        # The last to be written stays.
        first[owner[::-1]] = pixels[::-1] + rows.start * segments.shape[1]
        np.maximum.at(greatest, owner, scores[rows].ravel()[pixels])
        area += np.bincount(owner, minlength=count)
    is_fragment = area < min_area * segments.size
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
    """4-connected segments of equal labels, numbered from 1; 0 where the label is 0."""
    strips = list(row_strips(labels.shape, _PIXELS_AT_ONCE))
    segments = np.empty(labels.shape, np.int32)
    count, met = 0, []
    for rows in strips:
        some = segments[rows] = _segments_at_once(labels[rows])
        segments[rows][some > 0] += count
        count += int(some.max(initial=0))
        if rows.start:
            seam = slice(rows.start - 1, rows.start + 1)
            above, below = labels[seam]
            is_one = (above == below) & (above != 0)
            met.append(np.unique(segments[seam][:, is_one], axis=1))
    if met:
        number_of = _joined(count, np.concatenate(met, axis=1))
        for rows in strips:
            segments[rows] = number_of[segments[rows]]
    return segments


def row_strips(size: tuple[int, ...], pixels: int) -> Iterator[slice]:
    """Rows of an image from above, as many together as have so many pixels, at least one."""
    together = max(1, pixels // size[1])
    return (slice(y, min(y + together, size[0])) for y in range(0, size[0], together))


def _joined(count: int, pairs: NDArray[np.int32]) -> NDArray[np.int32]:
    """(count + 1,): new number of each of 0 ... count, where (2, n) pairs are one segment."""
    root = list(range(count + 1))

    def root_of(number: int) -> int:
        while root[number] != number:
            root[number] = number = root[root[number]]
        return number

    for one, other in pairs.T.tolist():
        low, high = sorted((root_of(one), root_of(other)))
        root[high] = low
    roots = [root_of(number) for number in range(count + 1)]
    return np.unique(roots, return_inverse=True)[1].astype(np.int32)


def _segments_at_once(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """One labelling serves all labels: a picture of twice the size has a dot for each pixel and,
    between two neighbours, a dot where their labels are equal.
    """
    height, width = labels.shape
    dots = np.zeros((2 * height - 1, 2 * width - 1), np.uint8)
    dots[::2, ::2] = labels != 0
    dots[1::2, ::2] = (labels[1:] == labels[:-1]) & (labels[1:] != 0)
    dots[::2, 1::2] = (labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] != 0)
    _, segments = cv2.connectedComponents(dots, connectivity=4)
    return np.ascontiguousarray(segments[::2, ::2])
