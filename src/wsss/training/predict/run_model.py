"""A run as the model of a labelling job: its torch networks, before anything is exported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import ConfigError
from ...runtime.bulk.class_thresholds import read_thresholds, require_classifier
from ...runtime.bulk.formats.contract import Need
from ...runtime.bulk.predictor_spec import Answer, require_plain_walk
from ...runtime.io.files import file_digest
from ..recipe.load import PredictionKind
from .run_predictor import RunPredictor


@dataclass(frozen=True)
class RunModel:
    """See `wsss.runtime.bulk.predictor_spec.Model`; a run tells no confidence and no scores.

    Attributes:
        details: what decides the pixels.
    """

    folder: Path
    classes: tuple[str, ...]
    kind: PredictionKind
    crf: bool | None
    device: str
    details: Mapping[str, Any]

    thresholds: tuple[float, ...] | None = None
    on_gpu: bool = False
    instances: bool = False
    in_flight: int = 1
    workers: int = 0

    @property
    def offers(self) -> frozenset[Need]:
        """See `Model`."""
        return frozenset({"instances"}) if self.instances else frozenset()

    def identity(self) -> Mapping[str, Any]:
        """See `Model`."""
        return self.details

    def open(self, threads: int | None) -> "OpenRun":
        """See `Model`."""
        if threads is not None:
            torch.set_num_threads(threads)
        predictor = RunPredictor(self.folder, self.device)
        if self.thresholds is not None:
            predictor.thresholds = np.asarray(self.thresholds)
        return OpenRun(predictor, self.kind, self.crf, self.instances)


class OpenRun:
    """See `wsss.runtime.bulk.predictor_spec.OpenModel`."""

    def __init__(
        self, predictor: RunPredictor, kind: PredictionKind, crf: bool | None, instances: bool
    ) -> None:
        self._predictor, self._kind, self._crf = predictor, kind, crf
        self._instances = instances

    def label(
        self, images: Sequence[NDArray[np.uint8]], labels: Sequence[Sequence[int] | None]
    ) -> list[Answer]:
        """See `OpenModel`."""
        return [self._answer(*each) for each in zip(images, labels, strict=True)]

    def _answer(self, image: NDArray[np.uint8], classes: Sequence[int] | None) -> Answer:
        if self._instances:
            found, maps = self._predictor.predict_instance_maps(image, classes)
            return Answer(found.label, change=found.change, maps=maps)
        found = self._predictor.predict(image, classes, self._kind, crf=self._crf)
        return Answer(found.label, change=found.change)

    def close(self) -> None:
        """See `OpenModel`."""


def _require_walk_if_needed(
    predictor: RunPredictor, kind: str | None, crf: bool | None, has_labels: bool
) -> None:
    """Say what to leave out where a method has no walk, which takes labels and has a CRF."""
    method, walks = predictor.recipe.method, "walk" in predictor.recipe.ways()
    if has_labels and kind is None and not walks:
        raise ConfigError(
            f"run '{predictor.folder}' is of method {method}, whose segmenter takes no image-level "
            "labels: leave `labels_path` out, or use `mode` cam"
        )
    if crf and kind == "cam" and not walks:
        raise ConfigError(
            f"run '{predictor.folder}' is of method {method}, which has no CRF for `mode` cam: "
            "leave `crf` out"
        )


def run_model(
    folder: Path,
    *,
    kind: str | None = None,
    crf: bool | None = None,
    has_labels: bool = False,
    device: str = "auto",
    threshold: str | None = None,
    instances: bool = False,
) -> RunModel:
    """A run that was looked at, so that what is wrong with it shows before any work.

    Args:
        kind: cam, walk, labels or segmenter; default: labels with image labels, else segmenter.
        crf: with or without the recipe's dense CRF; default: see `RunPredictor.label`.
        has_labels: whether the job has image-level labels.
        threshold: see `read_thresholds`.
        instances: tell single objects as well; by the walk without CRF alone.

    Raises:
        ConfigError, ArtifactError: see `RunPredictor`.
    """
    chosen = cast(PredictionKind, kind or ("labels" if has_labels else "segmenter"))
    if chosen not in get_args(PredictionKind):
        choices = ", ".join(get_args(PredictionKind))
        raise ConfigError(f"unknown way to label '{chosen}': choose of {choices}")
    if chosen == "segmenter" and has_labels:
        raise ConfigError("`mode` segmenter takes no image-level labels: leave `labels_path` out")
    predictor = RunPredictor(folder, device)
    _require_walk_if_needed(predictor, kind, crf, has_labels)
    if instances:
        require_plain_walk(chosen == "walk" and not crf)
        predictor.require_instances()
    thresholds = None
    if threshold is not None:
        require_classifier(chosen != "segmenter" and not has_labels)
        thresholds = read_thresholds(threshold, predictor.classes)
    weights = [predictor.weights_path(name) for name in predictor.stages_of(chosen)]
    details = {
        "run": {path.parent.name: file_digest(path) for path in weights},
        "by": chosen,
        "crf": crf,
        "thresholds": thresholds,
        "recipe": predictor.recipe.model_dump(mode="json", include={"cam", "walk", "segmenter"}),
    }
    if instances:
        details["instances"] = predictor.recipe.model_dump(mode="json")["instances"]
    on_gpu = predictor.device.type == "cuda"
    return RunModel(
        folder.resolve(),
        predictor.classes,
        chosen,
        crf,
        device,
        details,
        thresholds,
        on_gpu,
        instances,
    )
