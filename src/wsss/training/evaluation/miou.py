"""Scoring that says what it measured: one confusion matrix over a list, with its circumstances.

Protocol: PASCAL VOC 2012. IoU = TP / (TP + FP + FN) a class, mean over the classes that occur in
the truth, background included; truth 255 is left out, predicted 255 counts as background; full
resolution, truth is never resized. Source: VOC development kit; chainercv's evaluator.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, DataError
from ...runtime.io.image_io import read_label_map
from ...runtime.io.palette import IGNORE_INDEX
from ...runtime.io.progress import SILENT, Progress
from ...runtime.io.score_maps import ScoreMaps, load_score_maps
from ...runtime.refine.geometry import Align
from ...runtime.refine.seeds import full_size_scores
from ..data.image_set import ImageSet, Sample

SWEEP = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Background thresholds of a sweep."""

Predicted = ScoreMaps | NDArray[np.uint8]
Item = TypeVar("Item")
Result = TypeVar("Result")


class ConfusionMatrix:
    """Pixel counts of (truth, prediction) pairs; exact integers.

    Attributes:
        counts: (C + 1, C + 1) int64, rows truth, columns prediction, 0 = background.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    def add(self, prediction: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """Count one image; both (H, W) label maps.

        Raises:
            DataError: sizes differ, or an index is beyond the class list.
        """
        if prediction.shape != truth.shape:
            raise DataError(
                f"a prediction is {prediction.shape[0]} x {prediction.shape[1]}, its mask "
                f"{truth.shape[0]} x {truth.shape[1]}: predictions must have the image's size"
            )
        counted = truth != IGNORE_INDEX
        predicted = prediction[counted].astype(np.int64)
        predicted[predicted == IGNORE_INDEX] = 0
        expected = truth[counted].astype(np.int64)
        side = len(self.counts)
        highest = max(predicted.max(initial=0), expected.max(initial=0))
        if highest >= side:
            raise DataError(f"label {highest} found, the class list ends at {side - 1}")
        pairs = np.bincount(expected * side + predicted, minlength=side * side)
        self.counts += pairs.reshape(side, side)

    def iou(self) -> NDArray[np.float64]:
        """(C + 1,) IoU in [0, 1]; NaN for classes that do not occur in the truth."""
        hits = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        occurs = self.counts.sum(1) > 0
        return np.where(occurs, hits / np.maximum(union, 1), np.nan)

    def miou(self) -> float:
        """Mean IoU in [0, 1] over the classes that occur; NaN where no pixel was counted."""
        values = self.iou()
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


class Predictions(Protocol):
    """Something to be measured."""

    @property
    def description(self) -> str:
        """What was measured, for the report."""

    @property
    def image_labels_used(self) -> bool | None:
        """Whether image-level labels helped; None where that is not known."""

    @property
    def are_labels(self) -> bool:
        """Whether they are label maps, so that no threshold matters, rather than score maps."""

    def predict(self, sample: Sample) -> Predicted:
        """Score maps, or a (H, W) label map."""


@dataclass(frozen=True)
class EvalReport:
    """Result of an evaluation, with everything that it depends on."""

    predictions: str
    """What was measured, in words."""
    data: str
    """Folder of the image set."""
    list_name: str
    """List that was measured on."""
    images: int
    """Number of images in the list."""
    image_labels_used: bool | None
    """Whether the predictions were given image-level labels; None if that is not known."""
    background: str
    """Rule that made background: a threshold, or `in the predictions`."""
    miou: float
    """Mean IoU in per cent over background and the classes that occur."""
    iou: dict[str, float]
    """IoU of each class in per cent; NaN for classes that do not occur."""
    sources: dict[str, dict[str, float]] = field(default_factory=dict)
    """Images and mIoU of each source, at the same threshold, if the data names sources."""
    sweep: list[dict[str, float]] = field(default_factory=list)
    """One row per threshold: threshold, miou and, for each source, `miou/SOURCE`."""

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible; classes that do not occur are null."""
        return {key: without_nan(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "EvalReport":
        """Back from `to_json`.

        Raises:
            TypeError, KeyError, AttributeError: other keys or types.
        """
        nan = float("nan")
        iou = {name: nan if value is None else value for name, value in values["iou"].items()}
        miou = nan if values["miou"] is None else values["miou"]
        return cls(**{**values, "iou": iou, "miou": miou})


def evaluate(
    predictions: Predictions,
    image_set: ImageSet,
    list_name: str,
    *,
    threshold: float = 0.2,
    sweep: bool = False,
    align: Align = "reference",
    progress: Progress = SILENT,
) -> EvalReport:
    """Measure predictions against the masks of an image set.

    Args:
        image_set: the list to measure; every sample needs a mask.
        threshold: background constant for score maps without their own background.
        sweep: measure all thresholds of `SWEEP`, and report the best one's figures.
        align: how score maps lie on the image.

    Raises:
        DataError: no masks; ArtifactError: predictions missing.
    """
    samples = image_set.samples
    without = sum(sample.mask is None for sample in samples)
    if without or not samples:
        raise DataError(
            f"list '{list_name}' of '{image_set.root}' has {len(samples)} images, {without} of "
            "them without a mask: masks are needed to evaluate, choose a list that has them"
        )
    thresholds = tuple(sorted({*SWEEP, threshold})) if sweep else (threshold,)
    tally = _Tally(len(image_set.classes), thresholds)

    def judge(sample: Sample) -> tuple[Sample, list[NDArray[np.uint8]], bool, NDArray[np.uint8]]:
        prediction = predictions.predict(sample)
        maps, swept = label_maps(prediction, thresholds, align)
        return sample, maps, swept, sample.load_mask()

    with progress.task(f"eval {list_name}", len(samples)) as task:
        for sample, maps, swept, truth in in_order(judge, samples):
            tally.add(sample, maps, swept, truth)
            task.advance()
    return tally.report(predictions, image_set, list_name, threshold, sweep)


def label_maps(
    prediction: Predicted, thresholds: Sequence[float], align: Align
) -> tuple[list[NDArray[np.uint8]], bool]:
    """Label maps of one image at each threshold, and whether thresholds mattered."""
    if isinstance(prediction, np.ndarray):
        return [prediction] * len(thresholds), False
    scores = full_size_scores(prediction, align)
    if not len(scores):
        swept = prediction.background is None
        return [np.zeros(prediction.size, np.uint8)] * len(thresholds), swept
    best, index = (part.numpy() for part in scores.max(0))
    winner = (prediction.classes + 1).astype(np.uint8)[index]
    if prediction.background is not None:
        only_background = ScoreMaps(
            np.zeros(1, np.int64), prediction.background[None], prediction.size
        )
        limit = full_size_scores(only_background, align)[0].numpy()
        return [np.where(best > limit, winner, 0).astype(np.uint8)] * len(thresholds), False
    return [np.where(best > value, winner, 0).astype(np.uint8) for value in thresholds], True


class _Tally:
    """Confusion matrices per threshold, for all images and for each source."""

    def __init__(self, num_classes: int, thresholds: Sequence[float]) -> None:
        self.num_classes = num_classes
        self.thresholds = thresholds
        self.matrices: dict[str, list[ConfusionMatrix]] = {}
        self.images: dict[str, int] = {}
        self.swept = False
        self._add_group("")

    def _add_group(self, group: str) -> None:
        self.matrices[group] = [ConfusionMatrix(self.num_classes) for _ in self.thresholds]
        self.images[group] = 0

    def add(
        self,
        sample: Sample,
        maps: list[NDArray[np.uint8]],
        swept: bool,
        truth: NDArray[np.uint8],
    ) -> None:
        self.swept |= swept
        group = sample.source or ""
        if group not in self.matrices:
            self._add_group(group)
        for name in {"", group}:
            self.images[name] += 1
            for matrix, labels in zip(self.matrices[name], maps, strict=True):
                try:
                    matrix.add(labels, truth)
                except DataError as error:
                    raise DataError(f"image '{sample.name}': {error}") from None

    def report(
        self,
        predictions: Predictions,
        image_set: ImageSet,
        list_name: str,
        threshold: float,
        sweep: bool,
    ) -> EvalReport:
        chosen = self.thresholds.index(threshold)
        if sweep and self.swept:
            values = [matrix.miou() for matrix in self.matrices[""]]
            if np.isfinite(values).any():  # not where masks are void throughout
                chosen = int(np.nanargmax(values))
        how = ", best of a sweep on this list" if sweep else ""
        rule = f"threshold {self.thresholds[chosen]:g}{how}"
        names = ("background", *image_set.classes)
        whole = self.matrices[""][chosen]
        groups = sorted(group for group in self.matrices if group)
        return EvalReport(
            predictions=predictions.description,
            data=str(image_set.root),
            list_name=list_name,
            images=self.images[""],
            image_labels_used=predictions.image_labels_used,
            background=rule if self.swept else "in the predictions",
            miou=percent(whole.miou()),
            iou={name: percent(v) for name, v in zip(names, whole.iou().tolist(), strict=True)},
            sources={
                group: {
                    "images": self.images[group],
                    "miou": percent(self.matrices[group][chosen].miou()),
                }
                for group in groups
            },
            sweep=self._sweep_rows(groups) if sweep and self.swept else [],
        )

    def _sweep_rows(self, groups: list[str]) -> list[dict[str, float]]:
        return [
            {"threshold": value, "miou": percent(self.matrices[""][index].miou())}
            | {f"miou/{g}": percent(self.matrices[g][index].miou()) for g in groups}
            for index, value in enumerate(self.thresholds)
        ]


class FolderPredictions:
    """Predictions stored as `NAME.png` label maps or `NAME.npz` score maps."""

    def __init__(
        self, folder: Path, images: ImageSet, image_labels_used: bool | None = None
    ) -> None:
        """Find out which kind the folder holds for these images.

        A stage folder of a run may be given as well; its score maps lie in `scores`.

        Raises:
            ArtifactError: no such folder, or not a single prediction for these images.
        """
        if not folder.is_dir():
            raise ArtifactError(
                f"no such folder: '{folder}': give a run, a job of `wsss label`, or a folder of "
                "NAME.png or NAME.npz"
            )
        for place, suffix in ((folder, ".png"), (folder, ".npz"), (folder / "scores", ".npz")):
            if any((place / f"{sample.name}{suffix}").is_file() for sample in images.samples):
                break
        else:
            raise ArtifactError(
                f"'{folder}' holds no NAME.png or NAME.npz for any of the {len(images.samples)} "
                f"images: expected files such as '{images.samples[0].name}.png'"
                if images.samples
                else "the list has no images"
            )
        self.folder = place
        self.suffix = suffix
        self.are_labels = suffix == ".png"
        self.description = f"{'label' if suffix == '.png' else 'score'} maps in {place}"
        self.image_labels_used = image_labels_used

    def predict(self, sample: Sample) -> Predicted:
        """Read the stored prediction of a sample."""
        path = self.folder / f"{sample.name}{self.suffix}"
        if not path.is_file():
            raise ArtifactError(
                f"no prediction '{path}' for image '{sample.name}': make the missing ones, or "
                "choose a list by `split` that the predictions cover"
            )
        return read_label_map(path) if self.suffix == ".png" else load_score_maps(path)


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterable[Result]:
    """Map with two threads in bounded memory, results in order."""
    queue: list[Any] = []
    with ThreadPoolExecutor(2) as pool:
        for item in items:
            queue.append(pool.submit(function, item))
            if len(queue) > 4:
                yield queue.pop(0).result()
        for future in queue:
            yield future.result()


def percent(value: float) -> float:
    """A share as reports print it."""
    return round(100 * value, 3)


def without_nan(value: Any) -> Any:
    """The same with None for NaN, which JSON lacks, at any depth."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value
