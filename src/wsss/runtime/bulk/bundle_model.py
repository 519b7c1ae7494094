"""A bundle as the model of a job: neither torch nor training code is needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, ConfigError
from ..backends.registry import Backend, Device
from ..backends.triton.options import TritonOptions
from ..bundle.predictor import BundleKind, BundlePredictor, Labelled
from .class_thresholds import read_thresholds, require_classifier
from .formats.contract import Need
from .predictor_spec import Answer, require_plain_walk

_ALL: frozenset[Need] = frozenset(("confidence", "scores"))


@dataclass(frozen=True)
class BundleModel:
    """See `Model`.

    Attributes:
        digest: of the bundle; the folder must still hold it when a worker opens it.
        computes: what runs the graphs; of a server, what it computes with: a job may go on with
            another one, or without.
        on_gpu: see `Model`.
        thresholds: of the classifier, where no image-level labels are given; None: the run's.
        instances: tell single objects as well.
        server: of the backend triton; several images are then under way at once.
    """

    folder: Path
    digest: str
    classes: tuple[str, ...]
    kind: BundleKind
    crf: bool
    backend: Backend
    device: Device
    computes: str
    on_gpu: bool
    server: TritonOptions | None = None
    thresholds: tuple[float, ...] | None = None
    instances: bool = False

    @property
    def in_flight(self) -> int:
        """See `Model`."""
        return self.server.in_flight if self.server is not None else 1

    @property
    def workers(self) -> int | None:
        """See `Model`; a GPU or a server is best served by one."""
        return 1 if self.on_gpu or self.server is not None else None

    @property
    def offers(self) -> frozenset[Need]:
        """See `Model`; what the network says of its own labels says nothing of those of the CRF."""
        if self.crf:
            return frozenset()
        return _ALL | {"instances"} if self.instances else _ALL

    def identity(self) -> Mapping[str, Any]:
        """See `Model`."""
        return {
            "bundle": self.digest,
            "by": self.kind,
            "crf": self.crf,
            "backend": self.computes,
            "thresholds": self.thresholds,
            "instances": self.instances,
        }

    def open(self, threads: int | None) -> "OpenBundle":
        """See `Model`.

        Raises:
            ArtifactError: the bundle was exchanged since the job began; see `BundlePredictor`.
        """
        options: dict[str, Any] = {"backend": self.backend, "device": self.device}
        options |= {"server": self.server, "thresholds": self.thresholds}
        predictor = BundlePredictor(self.folder, threads=threads, **options)
        if predictor.bundle.digest != self.digest:
            raise ArtifactError(
                f"'{self.folder}' was exchanged while it labels: put the bundle back, or begin the "
                "job again"
            )
        return OpenBundle(predictor, self.kind, self.crf, self.instances)


class OpenBundle:
    """See `OpenModel`."""

    def __init__(
        self, predictor: BundlePredictor, kind: BundleKind, crf: bool, instances: bool
    ) -> None:
        self._predictor, self._kind, self._crf = predictor, kind, crf
        self._instances = instances

    def label(
        self, images: Sequence[NDArray[np.uint8]], labels: Sequence[Sequence[int] | None]
    ) -> list[Answer]:
        """See `OpenModel`."""
        if self._crf:
            return [
                self._refined(image, classes) for image, classes in zip(images, labels, strict=True)
            ]
        if self._instances:
            apart = self._predictor.predict_instance_maps(np.stack(images), labels)
            return [replace(self._answer(each), maps=maps) for each, maps in apart]
        found = self._predictor.predict_batch(np.stack(images), labels, self._kind)
        return [self._answer(each) for each in found]

    def close(self) -> None:
        """See `OpenModel`."""
        self._predictor.close()

    def _answer(self, found: Labelled) -> Answer:
        # A segmenter's scores are of the image's size, where both rules are one.
        align = self._predictor.bundle.align
        return Answer(found.label, found.confidence, found.scores, found.change, align)

    def _refined(self, image: NDArray[np.uint8], classes: Sequence[int] | None) -> Answer:
        found = self._predictor.predict(image, classes, self._kind)
        return Answer(self._predictor.refine(image, found, self._kind), change=found.change)


def bundle_model(
    folder: Path,
    *,
    kind: str | None = None,
    crf: bool | None = None,
    has_labels: bool = False,
    backend: Backend = "auto",
    device: Device = "auto",
    server: TritonOptions | None = None,
    threshold: str | None = None,
    instances: bool = False,
) -> BundleModel:
    """A bundle that was opened once, so that what is wrong with it shows before any work.

    Args:
        kind: walk, segmenter, or labels: the walk with the CRF, unless `crf` is False; default:
            walk with image labels, else segmenter.
        has_labels: whether the job has image-level labels.
        threshold: see `read_thresholds`.
        instances: tell single objects as well.

    Raises:
        ConfigError, ArtifactError, MissingDependencyError, ServerError: see `BundlePredictor`.
    """
    predictor = BundlePredictor(folder, backend=backend, device=device, server=server)
    try:
        crf = kind == "labels" if crf is None else crf
        chosen = _kind("walk" if kind == "labels" else kind, predictor, has_labels)
        if chosen == "segmenter" and has_labels:
            raise ConfigError(
                "`mode` segmenter takes no image-level labels: leave `labels_path` out"
            )
        graphs = predictor.bundle.graphs
        if kind is None and has_labels and "label" not in graphs and "segmenter" in graphs:
            raise ConfigError(
                f"bundle '{folder}' has no walk, and its segmenter takes no image-level labels: "
                "leave `labels_path` out"
            )
        if instances:
            _require_instances(predictor, chosen, crf)
        thresholds = None
        if threshold is not None:
            require_classifier(chosen == "walk" and not has_labels)
            thresholds = read_thresholds(threshold, predictor.classes)
        if crf:
            from ..bundle.crf import crf_settings

            crf_settings(predictor.bundle, chosen)
        described = predictor.graph("segmenter" if chosen == "segmenter" else "label").describe()
        return BundleModel(
            folder.resolve(),
            predictor.bundle.digest,
            predictor.classes,
            chosen,
            crf,
            backend,
            device,
            described.backend,
            described.device != "cpu" and server is None,
            server,
            thresholds,
            instances,
        )
    finally:
        predictor.close()


def _require_instances(predictor: BundlePredictor, kind: BundleKind, crf: bool) -> None:
    require_plain_walk(kind == "walk" and not crf)
    if not predictor.tells_instances:
        raise ConfigError(
            f"`instances` needs a bundle or run of method irnet, '{predictor.bundle.folder}' is of "
            f"{predictor.bundle.method}: label by another one"
        )


def _kind(name: str | None, predictor: BundlePredictor, has_labels: bool) -> BundleKind:
    for kind in get_args(BundleKind):
        if name == kind:
            chosen: BundleKind = kind
            return chosen
    if name is not None:
        raise ConfigError(
            f"`mode` is '{name}', and a bundle labels by walk, labels or segmenter: choose one of "
            "them, or give the run as `model`"
        )
    return predictor.default_kind(has_labels)
