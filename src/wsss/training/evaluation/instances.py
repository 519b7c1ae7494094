"""Instances scored by average precision (AP), with the circumstances of the measurement.

AP of a class over a whole list, see `average_precision`; its mean is over the classes that occur in
the truth. Thresholds of IoU: 0.5, 0.7, and 0.50, 0.55 ... 0.95 (COCO's), of which `ap` is the mean.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...runtime.instances.instance_map import InstanceMap
from ...runtime.io.progress import SILENT, Progress
from ..data.image_set import ImageSet, Sample
from .average_precision import (
    InstanceMasks,
    Integers,
    Matches,
    average_precision,
    match,
    right_ones,
)
from .miou import in_order, percent, without_nan

RANGE = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Thresholds of IoU whose mean is `ap`."""
ALONE = {"ap50": 0.5, "ap70": 0.7}


class InstancePredictions(Protocol):
    """Something to be measured."""

    @property
    def description(self) -> str:
        """What was measured, for the report."""

    @property
    def image_labels_used(self) -> bool | None:
        """Whether image-level labels helped; None where that is not known."""

    def predict(self, sample: Sample) -> InstanceMap | InstanceMasks:
        """The instances of an image, of its size."""


@dataclass(frozen=True)
class InstanceReport:
    """Result of an evaluation with everything that it depends on; percentages are 0..100."""

    predictions: str
    data: str
    list_name: str
    images: int
    image_labels_used: bool | None
    instances: int
    """In the truth."""
    predicted: int
    """That were judged."""
    ap50: float
    ap70: float
    ap: float
    """Mean over the thresholds 0.50, 0.55 ... 0.95."""
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of each: instances, predicted, ap50, ap70, ap; NaN where it does not occur."""
    sources: dict[str, dict[str, float]] = field(default_factory=dict)
    """Where the data names sources: images, instances, predicted, ap50, ap70, ap of each."""

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible; AP of classes that do not occur is null."""
        return {key: without_nan(value) for key, value in asdict(self).items()}


def evaluate_instances(
    predictions: InstancePredictions,
    image_set: ImageSet,
    list_name: str,
    *,
    progress: Progress = SILENT,
) -> InstanceReport:
    """Measure predicted instances against those of an image set.

    In memory are a few images, and 40 bytes a prediction.

    Args:
        image_set: the list to measure; every sample needs its instances.

    Raises:
        DataError: no instance masks, or sizes differ; ArtifactError: predictions are missing.
    """
    _require_instances(image_set, list_name)
    samples = image_set.samples
    tally = InstanceTally(len(image_set.classes))

    def judge(sample: Sample) -> tuple[Sample, Matches, Integers]:
        found, truth = predictions.predict(sample), sample.load_instances()
        masks = InstanceMasks.of(found) if isinstance(found, InstanceMap) else found
        try:
            return sample, match(masks, truth), truth.classes
        except DataError as error:
            raise DataError(f"image '{sample.name}': {error}") from None

    with progress.task(f"eval {list_name}", len(samples)) as task:
        for sample, matches, true_classes in in_order(judge, samples):
            tally.add(matches, true_classes, sample.source)
            task.advance()
    whole = tally.figures(None)
    return InstanceReport(
        predictions=predictions.description,
        data=str(image_set.root),
        list_name=list_name,
        image_labels_used=predictions.image_labels_used,
        classes=tally.by_class(image_set.classes),
        sources={group: tally.figures(group) for group in tally.sources},
        images=int(whole["images"]),
        instances=int(whole["instances"]),
        predicted=int(whole["predicted"]),
        ap50=whole["ap50"],
        ap70=whole["ap70"],
        ap=whole["ap"],
    )


_ROW = np.dtype([("class", "u1"), ("group", "i4"), ("truth", "i8"), ("score", "f4"), ("iou", "f8")])


class InstanceTally:
    """Matches of many images: rows of numbers, no masks."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._groups: dict[str, int] = {}  # source, '' where none is named -> its number
        self._images: list[int] = []  # by group
        self._truths: list[Integers] = []  # by group, (C,)
        self._num_truths = 0
        self._rows = bytearray()  # of `_ROW`, a prediction each

    @property
    def sources(self) -> list[str]:
        """Those that were named, sorted."""
        return sorted(group for group in self._groups if group)

    def add(self, matches: Matches, true_classes: Integers, source: str | None = None) -> None:
        """Count one image.

        Args:
            true_classes: (G,) class index of each of its instances.
        """
        group = self._groups.setdefault(source or "", len(self._groups))
        if group == len(self._images):
            self._images.append(0)
            self._truths.append(np.zeros(self._num_classes, np.int64))
        self._images[group] += 1
        self._truths[group] += np.bincount(true_classes, minlength=self._num_classes)
        rows = np.empty(len(matches.classes), _ROW)
        rows["class"], rows["group"] = matches.classes, group
        rows["truth"] = np.where(matches.truths < 0, -1, matches.truths + self._num_truths)
        rows["score"], rows["iou"] = matches.scores, matches.ious
        self._rows += rows.tobytes()
        self._num_truths += len(true_classes)

    def by_class(self, names: Iterable[str]) -> dict[str, dict[str, float]]:
        """Instances, predicted, and AP in per cent of each class, over all images."""
        return {
            name: _in_percent(row) for name, row in zip(names, self._of_classes(None), strict=True)
        }

    def figures(self, source: str | None) -> dict[str, float]:
        """Images, instances, predicted, and mean AP in per cent; of a source, or of all."""
        rows = self._of_classes(source)
        counts = {key: sum(row[key] for row in rows) for key in ("instances", "predicted")}
        means = {key: _mean([row[key] for row in rows]) for key in (*ALONE, "ap")}
        images = sum(self._images) if source is None else self._images[self._groups[source]]
        return {"images": images, **counts, **_in_percent(means)}

    def _of_classes(self, source: str | None) -> list[dict[str, float]]:
        """Figures of all classes, in their order; AP in [0, 1], NaN of those that do not occur."""
        rows, truths = np.frombuffer(self._rows, _ROW), np.sum(self._truths, 0)
        if source is not None:
            group = self._groups[source]
            rows, truths = rows[rows["group"] == group], self._truths[group]
        order = np.argsort(rows["class"], kind="stable")
        rows = rows[order]
        ends = np.searchsorted(rows["class"], np.arange(self._num_classes + 1))
        return [
            _figures(rows[ends[index] : ends[index + 1]], int(truths[index]))
            for index in range(self._num_classes)
        ]


def _figures(rows: NDArray[np.void], num_truths: int) -> dict[str, float]:
    """Of one class."""
    found = {}
    for threshold in {*RANGE, *ALONE.values()}:
        right = right_ones(rows["score"], rows["iou"], rows["truth"], threshold)
        found[threshold] = average_precision(right, num_truths)
    return {
        "instances": num_truths,
        "predicted": len(rows),
        **{key: found[threshold] for key, threshold in ALONE.items()},
        "ap": float(np.mean([found[threshold] for threshold in RANGE])),
    }


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _in_percent(figures: dict[str, float]) -> dict[str, float]:
    return {key: percent(v) if key.startswith("ap") else v for key, v in figures.items()}


def _require_instances(image_set: ImageSet, list_name: str) -> None:
    samples = image_set.samples
    without = [sample.name for sample in samples if sample.instances is None]
    if not without:
        return
    splits = image_set.splits
    fit = [name for name in splits if all(s.instances for s in samples if name in s.splits)]
    advice = f"choose by `split` of the lists {', '.join(fit)}" if fit else "add them"
    raise DataError(
        f"list '{list_name}' of '{image_set.root}' has {len(samples)} images, {len(without)} of "
        f"them without instance masks, such as '{without[0]}': {advice}"
    )
