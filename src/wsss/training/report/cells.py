"""Cells of contact sheets: label maps, score maps and captions of the images of a run."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...runtime.io.palette import voc_palette
from ...runtime.io.score_maps import ScoreMaps
from ...runtime.report.pictures import Picture, draw_heat, draw_labels, shrink, shrink_labels
from ..data.image_set import Sample
from ..engine.run import Run

Legend = list[tuple[str, tuple[int, int, int]]]
PICTURE_SIDE = 224
"""Longer side of a picture in pixels."""


def class_legend(run: Run) -> Legend:
    """The classes and their colours."""
    return [
        (name, (int(red), int(green), int(blue)))
        for name, (red, green, blue) in zip(run.images.classes, voc_palette()[1:], strict=False)
    ]


def caption(run: Run, sample: Sample) -> str:
    """Which classes an image shows."""
    if sample.labels is None:
        return "labels not known"
    return ", ".join(run.images.classes[index] for index in sample.labels) or "no class"


def labels_picture(
    image: Picture, labels: NDArray[np.uint8], ids: NDArray[np.uint16] | None = None
) -> Picture:
    """A label map over its image, with lines between instances where their ids are given."""
    small = None if ids is None else shrink_labels(ids, PICTURE_SIDE)
    below = shrink(image, PICTURE_SIDE)
    return draw_labels(below, shrink_labels(labels, PICTURE_SIDE), ids=small)


def labels_cell(image: Picture, labels: NDArray[np.uint8] | None, absent: str) -> Picture | str:
    """A label map over its image, or why there is none."""
    return absent if labels is None else labels_picture(image, labels)


def heat_cell(image: Picture, maps: ScoreMaps | None) -> Picture | str:
    """Scores over their image, in one colour."""
    if maps is None:
        return "not run"
    scores = maps.scores
    if maps.background is not None:
        # Beside a walked background the absolute height says little, the share of it does.
        total = scores.sum(0) + maps.background
        scores = scores / np.maximum(total, 1e-6)
    return draw_heat(shrink(image, PICTURE_SIDE), scores)


def evenly(samples: Sequence[Sample], count: int) -> tuple[Sample, ...]:
    """At most `count` samples, spread over the whole list, in its order."""
    if len(samples) <= count:
        return tuple(samples)
    return tuple(samples[index * len(samples) // count] for index in range(count))
