"""Labelling by the torch networks of a run; bundles take this place where torch is absent."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..runtime.files import file_digest
from ..runtime.image_labels import read_label_table
from ..runtime.labelling import LabelSummary, find_images, label_images
from ..runtime.progress import SILENT, Progress
from .predictor import PredictionKind, RunPredictor


def label_by_run(
    sources: Sequence[Path],
    run_folder: Path,
    out: Path,
    *,
    labels_path: Path | None = None,
    kind: str | None = None,
    crf: bool | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> LabelSummary:
    """Label images and folders; see `RunPredictor.label` for the ways to make labels.

    Args:
        labels_path: CSV or JSON of image-level labels; without it the segmenter labels, or the
            classifier finds the classes for the walk.
        kind: cam, walk, labels or segmenter; default: labels with image labels, else segmenter.
        crf: with or without the recipe's dense CRF; default: see `RunPredictor.label`.

    Raises:
        ConfigError, DataError, ArtifactError: see `label_images`.
    """
    table = read_label_table(labels_path) if labels_path else None
    chosen = cast(PredictionKind, kind or ("labels" if table else "segmenter"))
    if chosen not in get_args(PredictionKind):
        choices = ", ".join(get_args(PredictionKind))
        raise ConfigError(f"unknown way to label '{chosen}': choose of {choices}")
    if chosen == "segmenter" and table is not None:
        raise ConfigError("--by segmenter takes no image-level labels: leave --labels out")
    images = find_images(sources, leave_out=out)
    predictor = RunPredictor(run_folder, device)

    def predict(image: NDArray[np.uint8], labels: Sequence[int] | None) -> NDArray[np.uint8]:
        return predictor.label(image, labels, chosen, crf=crf)

    alone = chosen in ("segmenter", "cam")
    networks = (chosen,) if alone else ("cam", "affinity")
    weights = [predictor.weights_path(name) for name in networks]
    provenance = {
        "model": {path.parent.name: file_digest(path) for path in weights},
        "by": chosen,
        "crf": crf,
        "recipe": predictor.recipe.model_dump(mode="json", include={"cam", "walk", "segmenter"}),
        "image_labels": file_digest(labels_path) if labels_path else None,
    }
    return label_images(
        images,
        predict,
        out,
        provenance=provenance,
        classes=predictor.classes,
        labels=table,
        overwrite=overwrite,
        progress=progress,
    )
