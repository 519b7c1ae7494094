"""Average precision of instances: which prediction is right about which instance, and the curve.

Protocol: PASCAL VOC. Per class over a whole list, predictions are sorted by score; each is compared
with the instance of its class and image that it overlaps best, and is right where their IoU
reaches the threshold and no earlier one was right about that instance. AP is the area under the
envelope of precision over recall, every step of it, not 11 points. Predictions with a score below
1e-5 are left out.

Pixels that the truth calls void (255, crowds) count on neither side: they are taken out of every
prediction before its IoU is computed, and a prediction that has no other pixels is left out.

Source: VOC development kit; simultaneous detection and segmentation (Hariharan et al., ECCV 2014).
Deviation: chainercv's evaluator, of which the published figures of IRNet are, leaves void pixels in
predictions, which can only lower their IoU. And fragments, whose score is 0, are not judged here;
the released evaluation judges them, as far as we know: they rank last there, and those that are
right add to AP, so that figures here may be lower.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...runtime.instances.instance_map import LEAST_SCORE, InstanceMap
from ..data.image_set import InstanceTruth

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class InstanceMasks:
    """Instances of one image that may overlap, as masks of other software do.

    Attributes:
        size: (height, width).
        pixels: (n,) flat indices, those of one instance after those of another, each once.
        owners: (n,) instance of each pixel, 0 to R - 1.
        classes, scores: as of `InstanceMap`.
    """

    size: tuple[int, int]
    pixels: Integers
    owners: Integers
    classes: Integers
    scores: NDArray[np.float32]

    @classmethod
    def of(cls, found: InstanceMap) -> "InstanceMasks":
        """Those of a map, which do not overlap."""
        flat = found.ids.ravel()
        pixels = np.flatnonzero(flat)
        size = (found.ids.shape[0], found.ids.shape[1])
        return cls(size, pixels, flat[pixels].astype(np.int64) - 1, found.classes, found.scores)


@dataclass(frozen=True)
class Matches:
    """Predictions of one image, each beside the instance that it overlaps best.

    Attributes:
        classes: (R,) class index of each.
        scores: (R,) float32.
        ious: (R,) of the best instance of its class; 0 where there is none.
        truths: (R,) place of that instance in the truth; -1 where there is none.
    """

    classes: Integers
    scores: NDArray[np.float32]
    ious: Floats
    truths: Integers


def match(found: InstanceMasks, truth: InstanceTruth) -> Matches:
    """Compare the predictions of an image with its truth.

    Of two instances that are overlapped alike the first counts. What is left out is not in the
    result; see the module.

    Raises:
        DataError: sizes differ.
    """
    if found.size != truth.ids.shape:
        height, width = found.size
        raise DataError(
            f"predicted instances are {height} x {width}, the true ones {truth.ids.shape[0]} x "
            f"{truth.ids.shape[1]}: predictions must have the image's size"
        )
    # Pixels of each prediction on each true instance; column 0 is the rest, the last one is void.
    columns = len(truth) + 2
    column_of = np.where(truth.void, columns - 1, truth.ids.astype(np.int64)).ravel()
    pairs = np.bincount(
        found.owners * columns + column_of[found.pixels], minlength=len(found.classes) * columns
    ).reshape(-1, columns)[:, :-1]
    areas = pairs.sum(1)
    kept = (found.scores >= LEAST_SCORE) & (areas > 0)
    classes, scores = found.classes[kept], found.scores[kept]
    shared, areas = pairs[kept, 1:], areas[kept]  # (R, G), (R,)
    true_areas = np.bincount(column_of, minlength=columns)[1:-1]
    ious = shared / (areas[:, None] + true_areas - shared)
    ious[classes[:, None] != truth.classes] = 0
    if not len(truth):
        return Matches(classes, scores, np.zeros(len(classes)), np.full(len(classes), -1))
    best = ious.argmax(1)
    greatest = ious[np.arange(len(best)), best]
    return Matches(classes, scores, greatest, np.where(greatest > 0, best, -1))


def right_ones(
    scores: NDArray[np.float32], ious: Floats, truths: Integers, threshold: float
) -> NDArray[np.bool_]:
    """(R,) which predictions of a class are right, in the order of their scores.

    Args:
        scores: of equal ones the first in the list comes first.
        truths: number of the instance beside each, unique over all images; -1: none.
        threshold: of IoU, which is reached if it is equal.
    """
    order = np.argsort(-scores, kind="stable")
    truths = np.where(ious[order] >= threshold, truths[order], -1)
    numbers, firsts = np.unique(truths, return_index=True)
    right = np.zeros(len(scores), bool)
    right[firsts[numbers >= 0]] = True
    return right


def precision_and_recall(right: NDArray[np.bool_], num_truths: int) -> tuple[Floats, Floats]:
    """(R,) after each prediction: the share of right ones, and of instances that were found.

    Args:
        right: in the order of scores.
        num_truths: instances of the class, >= 1.
    """
    hits = np.cumsum(right, dtype=np.float64)
    return hits / np.arange(1, len(right) + 1), hits / num_truths


def average_precision(right: NDArray[np.bool_], num_truths: int) -> float:
    """Area in [0, 1] under the envelope: at each recall the greatest precision at that or more.

    Args:
        right, num_truths: see `precision_and_recall`; without an instance the area is NaN.
    """
    if not num_truths:
        return float("nan")
    precision, recall = precision_and_recall(right, num_truths)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())
