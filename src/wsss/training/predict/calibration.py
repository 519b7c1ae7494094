"""From which probability on a class counts as present: chosen on images whose classes are known.

A threshold that was chosen on few images fits those and no others, so a class keeps the usual one
unless enough images have it and enough lack it. The probabilities of images that the classifier
learnt from are surer than those of new ones.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.io.image_io import read_image
from ...runtime.io.progress import SILENT, Progress
from ..data.image_set import ImageSet
from .run_predictor import CLASS_THRESHOLD, RunPredictor

FEWEST = 5
"""Images with a class, and without it, to choose its threshold by."""


@dataclass(frozen=True)
class Scores:
    """How well a threshold tells the images of a class, in [0, 1].

    Attributes:
        precision: 0 where no image reaches the threshold.
        recall: 0 where no image has the class.
    """

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClassThreshold:
    """The choice for one class.

    Attributes:
        images: that have the class.
        chosen, usual: at `threshold`, and at 0.5.
        note: why the usual threshold was kept; empty where it was not.
    """

    name: str
    threshold: float
    images: int
    chosen: Scores
    usual: Scores
    note: str


@dataclass(frozen=True)
class Calibration:
    """Thresholds of all classes, and what they were chosen on.

    Attributes:
        learnt_from: whether the classifier was trained on images of this list.
    """

    run: str
    data: str
    list_name: str
    images: int
    learnt_from: bool
    classes: tuple[ClassThreshold, ...]

    @property
    def thresholds(self) -> dict[str, float]:
        """Class name -> threshold, as `wsss label --threshold` takes them."""
        return {each.name: each.threshold for each in self.classes}

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self)


def calibrate(
    run: Path,
    images: ImageSet,
    *,
    split: str | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Calibration:
    """Apply a run's classifier to a list, and choose a threshold for each class.

    Args:
        split: default: the recipe's validation list.

    Raises:
        ArtifactError: no run, one without a classifier, or of other classes.
        DataError: no such list, or an image without image-level labels.
    """
    predictor = RunPredictor(run, device)
    images.require_classes(predictor.classes, f"run '{run}'")
    list_name = split or predictor.recipe.data.val_split
    samples = images.select(list_name).samples
    present = np.stack([sample.label_vector(len(images.classes)) for sample in samples]) > 0
    probabilities = np.empty(present.shape, np.float32)
    with progress.task(f"calibrate {list_name}", len(samples)) as task:
        for row, sample in enumerate(samples):
            probabilities[row] = predictor.class_probabilities(read_image(sample.image_path))
            task.advance()
    learnt = predictor.recipe.data.train_split
    return Calibration(
        str(run),
        str(images.root),
        list_name,
        len(samples),
        any(learnt in sample.splits for sample in samples),
        tuple(
            choose_threshold(name, probabilities[:, index], present[:, index])
            for index, name in enumerate(images.classes)
        ),
    )


def choose_threshold(
    name: str, probabilities: NDArray[np.float32], present: NDArray[np.bool_]
) -> ClassThreshold:
    """The threshold with the best F1; of several the highest.

    It lies in the middle between the least probability that reaches it and the next one below,
    so that no image of the list stands on the edge.

    Args:
        probabilities, present: (images,) of one class.
    """
    positives = int(present.sum())
    threshold, note = CLASS_THRESHOLD, ""
    if positives < FEWEST:
        note = f"kept: {positives} images have it, fewer than {FEWEST}"
    elif len(present) - positives < FEWEST:
        note = f"kept: {len(present) - positives} images lack it, fewer than {FEWEST}"
    else:
        threshold = _best_threshold(probabilities, present)
    return ClassThreshold(
        name,
        threshold,
        positives,
        score_threshold(threshold, probabilities, present),
        score_threshold(CLASS_THRESHOLD, probabilities, present),
        note,
    )


def score_threshold(
    threshold: float, probabilities: NDArray[np.float32], present: NDArray[np.bool_]
) -> Scores:
    """Of the images that reach a threshold; see `choose_threshold`."""
    found = probabilities.astype(np.float64) >= threshold
    hits = int((found & present).sum())
    precision = hits / max(1, int(found.sum()))
    recall = hits / max(1, int(present.sum()))
    return Scores(precision, recall, 2 * hits / max(1, int(found.sum() + present.sum())))


def _best_threshold(probabilities: NDArray[np.float32], present: NDArray[np.bool_]) -> float:
    # (values,) ascending: at each of them, how many images reach it and how many of those are hits
    values, place = np.unique(probabilities.astype(np.float64), return_inverse=True)
    count = np.bincount(place, minlength=len(values))[::-1].cumsum()[::-1]
    hits = np.bincount(place[present], minlength=len(values))[::-1].cumsum()[::-1]
    f1 = 2 * hits / (count + present.sum())
    best = int(np.flatnonzero(f1 == f1.max())[-1])
    below = values[best - 1] if best else 0.0
    return float((values[best] + below) / 2)
