"""How right the labels of a job are where it is sure of them: coverage against precision."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, ConfigError, DataError
from ...runtime.bulk.formats.image_files import FOLDER as MASKS
from ...runtime.bulk.job import JOB, read_job
from ...runtime.bulk.plan import TAR
from ...runtime.io.image_io import read_label_map
from ...runtime.io.palette import IGNORE_INDEX
from ...runtime.io.progress import SILENT, Progress
from ..data.image_set import ImageSet, Sample
from .miou import ConfusionMatrix, FolderPredictions, in_order

CONFIDENCE = "confidence"
"""Name of the format, and of its folder."""
STEPS = 20
"""Thresholds: 0, 1 / STEPS, ... below 1."""

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class CoverageRow:
    """The pixels whose confidence reaches a threshold; shares are 0 to 100, None without pixels.

    Attributes:
        kept: of the pixels that the truth speaks of.
        objects_kept: of those among them that are labelled as a class, not as background; of
            which models are less sure.
        accuracy: of those kept, the share with the right label.
        miou: over the classes that occur in the truth of those kept.
        classes: how many those are, with the background.
    """

    threshold: float
    kept: float
    objects_kept: float | None
    accuracy: float | None
    miou: float | None
    classes: int


@dataclass(frozen=True)
class CoverageReport:
    """A curve, and what it was measured on."""

    predictions: str
    data: str
    list_name: str
    images: int
    rows: tuple[CoverageRow, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self)


def measure_coverage(
    out: Path, images: ImageSet, *, split: str | None = None, progress: Progress = SILENT
) -> CoverageReport:
    """Measure the label maps of a job at rising thresholds of their confidence maps.

    Args:
        out: folder of a job in the formats png and confidence, without `min_confidence`.
        split: list of the image set; default: all images.

    Raises:
        ConfigError: the job was written otherwise.
        ArtifactError: no job, or label or confidence maps are missing.
        DataError: an image without a mask, or a map of another size.
    """
    _require_maps(out)
    chosen, list_name = images.select(split), split or "all"
    folder = FolderPredictions(out / MASKS, chosen)
    matrices = [ConfusionMatrix(len(images.classes)) for _ in range(STEPS)]

    def judge(sample: Sample) -> tuple[Sample, Labels, Labels, Labels]:
        label = folder.predict(sample)
        assert isinstance(label, np.ndarray)  # `masks` has no score maps
        return sample, label, _read_confidence(out, sample), sample.load_mask()

    with progress.task(f"coverage {list_name}", len(chosen.samples)) as task:
        for sample, label, confidence, truth in in_order(judge, chosen.samples):
            try:
                count_by_confidence(matrices, label, confidence, truth)
            except DataError as error:
                raise DataError(f"image '{sample.name}': {error}") from None
            task.advance()
    rows = curve(matrices)
    return CoverageReport(str(out), str(images.root), list_name, len(chosen.samples), rows)


def count_by_confidence(
    matrices: list[ConfusionMatrix], label: Labels, confidence: Labels, truth: Labels
) -> None:
    """Count one image: each pixel in the matrix of the highest threshold that it reaches.

    Args:
        confidence: (H, W), 255 times the confidence.

    Raises:
        DataError: sizes differ, or a label is beyond the class list.
    """
    if not label.shape == confidence.shape == truth.shape:
        sizes = " and ".join(f"{m.shape[0]} x {m.shape[1]}" for m in (label, confidence, truth))
        raise DataError(f"label, confidence and mask are {sizes}, expected one size")
    # In whole numbers: 0.2 * 255 is 51 and not a little more.
    steps = np.minimum(confidence.astype(np.int64) * STEPS // 255, STEPS - 1)
    steps[truth == IGNORE_INDEX] = STEPS
    for step, matrix in enumerate(matrices):
        reached = steps == step
        if reached.any():
            matrix.add(label[reached][None], truth[reached][None])


def curve(matrices: list[ConfusionMatrix]) -> tuple[CoverageRow, ...]:
    """Rows of all thresholds, from the pixels that `count_by_confidence` counted."""
    whole = np.sum([matrix.counts for matrix in matrices], 0)
    total, objects = int(whole.sum()), int(whole[:, 1:].sum())
    kept, rows = ConfusionMatrix(len(whole) - 1), []
    for step in range(STEPS - 1, -1, -1):
        kept.counts += matrices[step].counts
        count = int(kept.counts.sum())
        right = int(np.trace(kept.counts))
        rows.append(
            CoverageRow(
                step / STEPS,
                100 * count / max(1, total),
                100 * int(kept.counts[:, 1:].sum()) / objects if objects else None,
                100 * right / count if count else None,
                100 * kept.miou() if count else None,
                int((kept.counts.sum(1) > 0).sum()),
            )
        )
    return tuple(reversed(rows))


def _require_maps(out: Path) -> None:
    if not (out / JOB).is_file():
        raise ArtifactError(
            f"'{out}' holds no job: coverage needs a folder of `wsss label --format png,confidence`"
        )
    settings = read_job(out)["settings"]
    formats = settings.get("formats", [])
    if TAR in formats or not {"png", CONFIDENCE} <= set(formats):
        raise ConfigError(
            f"'{out}' was written in the formats {','.join(formats)}: label again into another "
            "folder in the formats png,confidence"
        )
    if settings.get("min_confidence") is not None:
        raise ConfigError(
            f"'{out}' was written with a minimum confidence of {settings['min_confidence']}, "
            "below which labels are lost: label again into another folder without it"
        )


def _read_confidence(out: Path, sample: Sample) -> Labels:
    path = out / CONFIDENCE / f"{sample.name}.png"
    if not path.is_file():
        raise ArtifactError(f"no confidence map '{path}' for image '{sample.name}': label it again")
    return read_label_map(path)
