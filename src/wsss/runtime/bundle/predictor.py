"""Apply a bundle to images, without training code."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, ConfigError
from ..backends.contract import OpenGraph
from ..backends.registry import Backend, Device
from ..backends.triton.options import TritonOptions
from ..predictor import (
    Image,
    Mode,
    Prediction,
    Predictor,
    PredictorSpec,
    require_thresholds,
    unknown_mode,
)
from .graph_files import open_bundle_graph
from .inputs import label_inputs
from .manifest import ModeEntry
from .open import Bundle, open_bundle

_OUTPUTS = frozenset({"label", "confidence", "scores"})
"""What a graph that labels must give."""
_FIELDS = ("cam", "boundary", "displacement")
"""What instances are made from, besides the labels of the walk."""
_ORDER = ("walk", "labels", "segmenter")
"""In which modes are listed; others follow."""


class BundlePredictor(Predictor):
    """Opens the graphs of a bundle when they are first needed.

    Attributes:
        bundle: what was opened and checked. Graphs that no mode in use needs may be absent.
        classes: class names without background.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        backend: Backend = "auto",
        device: Device = "auto",
        threads: int | None = None,
        server: TritonOptions | None = None,
        thresholds: Sequence[float] | None = None,
        instances: bool = False,
    ) -> None:
        """Check a bundle; see `open_bundle`, `open_graph` and `open_triton` for what is refused.

        Args:
            server: where the graphs run for the backend triton, and only for it; it must serve
                this very bundle.
            thresholds: see `present_input`.
            instances: tell single objects in mode `walk`, which needs torch.
        """
        if (backend == "triton") != (server is not None):
            raise ConfigError(
                "backend 'triton' needs a server, and no other backend takes one: give `backend` "
                "triton together with `server`"
            )
        self.bundle: Bundle = open_bundle(folder, partial=True)
        self.classes = self.bundle.classes
        self._options: dict[str, Any] = {"backend": backend, "device": device, "threads": threads}
        self._server = server
        self._graphs: dict[str, OpenGraph] = {}
        self._thresholds: Sequence[float] | None = None
        require_thresholds(thresholds, self.classes)
        self.thresholds = thresholds
        self.with_instances = instances
        if instances:
            self._require_instances()

    @property
    def thresholds(self) -> Sequence[float] | None:
        """See `Predictor`."""
        return self._thresholds

    @thresholds.setter
    def thresholds(self, values: Sequence[float] | None) -> None:
        classifier = self.bundle.settings.get("classifier")
        takes = isinstance(classifier, dict) and classifier.get("takes_thresholds")
        if values is not None and not takes:
            raise ArtifactError(
                f"bundle '{self.bundle.folder}' was exported before its graphs took thresholds of "
                "classes: export it again"
            )
        self._thresholds = values

    @property
    def description(self) -> str:
        """See `Predictor`."""
        return f"bundle '{self.bundle.folder}'"

    @property
    def modes(self) -> tuple[str, ...]:
        """See `Predictor`."""
        order = {name: place for place, name in enumerate(_ORDER)}
        modes = self.bundle.modes
        names = [name for name in modes if self._has(modes[name].graph)]
        return tuple(sorted(names, key=lambda name: order.get(name, len(order))))

    @property
    def has_instances(self) -> bool:
        """See `Predictor`."""
        graphs = [self.bundle.graphs[name] for name in self.bundle.instances if self._has(name)]
        given = {spec.name for graph in graphs for spec in graph.outputs}
        is_whole = len(graphs) == len(self.bundle.instances) > 0
        return is_whole and given.issuperset({"label", *_FIELDS})

    def mode_of(self, name: str) -> Mode:
        """See `Predictor`."""
        entry = self._entry(name)
        inputs = {spec.name for spec in self.bundle.graphs[entry.graph].inputs}
        settings = self.bundle.settings.get(entry.settings)
        crf = settings.get("crf") if isinstance(settings, dict) else None
        has_crf = bool(crf.get("iterations") if isinstance(crf, dict) else crf)
        return Mode("present" in inputs, entry.crf, has_crf)

    def predict_equal(
        self,
        images: Sequence[Image],
        classes: Sequence[Sequence[int] | None],
        mode: str,
        crf: bool,
    ) -> list[Prediction]:
        """See `Predictor`."""
        if crf:
            return [self._refined(*each, mode) for each in zip(images, classes, strict=True)]
        entry, pixels = self._entry(mode), np.stack(images)
        if self.with_instances and self.mode_of(mode).takes_classes:
            return self._predict_maps(pixels, classes)
        inputs = self._inputs(pixels, classes, takes_classes=self.mode_of(mode).takes_classes)
        found = self.graph(entry.graph).run(inputs)
        self._require_labels(found["label"], pixels)
        return self._predictions(found, len(pixels))

    def spec(self, mode: str, crf: bool) -> PredictorSpec:
        """See `Predictor`; a GPU or a server is best served by one worker."""
        entry, server = self._entry(mode), self._server
        if crf:
            from .torch_steps import crf_settings

            crf_settings(self.bundle, entry.settings)
        described = self.graph(entry.graph).describe()
        on_gpu = described.device != "cpu" and server is None
        options = self._options | {"server": server, "thresholds": self._thresholds}
        del options["threads"]
        # What the network says of its own labels says nothing of those of the CRF.
        provides = set() if crf else {"confidence", "scores"}
        provides |= {"instances"} if self.with_instances else set()
        return PredictorSpec(
            partial(
                _open_again,
                self.bundle.folder.resolve(),
                self.bundle.digest,
                instances=self.with_instances,
                **options,
            ),
            self.classes,
            mode,
            crf,
            {
                "bundle": self.bundle.digest,
                "backend": described.backend,
                "thresholds": self._thresholds,
                "instances": self.with_instances,
            },
            frozenset(provides),
            in_flight=server.in_flight if server is not None else 1,
            workers=1 if on_gpu or server is not None else None,
            on_gpu=on_gpu,
        )

    def _has(self, graph: str) -> bool:
        """Whether a graph can run: here by its file, on a server without it."""
        if graph not in self.bundle.graphs:
            return False
        if self._server is not None:
            return True
        is_compiled = self._options["backend"] == "tensorrt" and self.bundle.engines_of(graph)
        return bool(is_compiled) or self.bundle.has(graph)

    def _entry(self, mode: str) -> ModeEntry:
        """What the bundle says of a mode that it can serve; see `mode_of`."""
        entry = self.bundle.modes.get(mode)
        if entry is None:
            raise unknown_mode(self, mode)
        if not self._has(entry.graph):
            others = ", ".join(self.modes)
            remedy = f"choose mode {others}, or export" if others else "export"
            raise ArtifactError(
                f"mode '{mode}' needs graph '{entry.graph}', which {self.description} lacks: "
                f"{remedy} it with graph {entry.graph}"
            )
        return entry

    def _inputs(
        self, images: Image, classes: Sequence[Sequence[int] | None], *, takes_classes: bool
    ) -> dict[str, NDArray[Any]]:
        return label_inputs(
            images,
            classes,
            len(self.classes),
            self.bundle.layout,
            takes_classes=takes_classes,
            thresholds=self._thresholds,
        )

    def _refined(self, image: Image, classes: Sequence[int] | None, mode: str) -> Prediction:
        """The labels of a mode after the dense CRF."""
        from .torch_steps import refine

        (found,) = self.predict_equal([image], [classes], mode, crf=False)
        entry, takes_classes = self._entry(mode), self.mode_of(mode).takes_classes
        label = refine(self.bundle, image, found, entry.settings, on_grid=takes_classes)
        return Prediction(label, classes=found.classes, change=found.change)

    def _require_instances(self) -> None:
        if not self.has_instances:
            missing = [name for name in self.bundle.instances if not self._has(name)]
            if missing:
                raise ArtifactError(
                    f"instances need graph '{missing[0]}', which {self.description} lacks: export "
                    "it with all its graphs"
                )
            raise ConfigError(
                f"{self.description} of method {self.bundle.method} tells no instances: use a "
                "model whose method and recipe do"
            )

    def _predict_maps(
        self, images: Image, classes: Sequence[Sequence[int] | None]
    ) -> list[Prediction]:
        """Labels of the walk, and what instances are made from."""
        from .torch_steps import maps_of

        tensors = self._inputs(images, classes, takes_classes=True)
        for name in self.bundle.instances:
            taken = {spec.name for spec in self.bundle.graphs[name].inputs}
            given = {key: value for key, value in tensors.items() if key in taken}
            tensors |= self.graph(name).run(given)
            if tensors.keys() >= set(_FIELDS):
                cam, boundary, displacement = (tensors[field] for field in _FIELDS)
                self._require_fields(cam, boundary, displacement, len(images))
        self._require_labels(tensors["label"], images)
        size = (images.shape[1], images.shape[2])
        fields = [{name: tensors[name][index] for name in _FIELDS} for index in range(len(images))]
        return [
            replace(each, maps=maps_of(self.bundle, some, each.classes or (), size))
            for each, some in zip(self._predictions(tensors, len(images)), fields, strict=True)
        ]

    def _predictions(self, found: Mapping[str, NDArray[Any]], count: int) -> list[Prediction]:
        everything = tuple(range(len(self.classes)))
        used = found.get("used_classes")
        classes = (
            [everything] * count
            if used is None
            else [tuple(int(i) for i in np.flatnonzero(row)) for row in used]
        )
        planes = (found["label"], found["confidence"], found["scores"])
        changes = self._changes(found.get("change"), count)
        # A segmenter's scores are of the image's size, where both rules of `align` are one.
        return [
            Prediction(*each, align=self.bundle.align)
            for each in zip(*planes, classes, changes, strict=True)
        ]

    def _require_labels(self, label: NDArray[Any], images: NDArray[np.uint8]) -> None:
        """Refuse what a stranger's graph may give in place of labels of these images."""
        expected, last = images.shape[:3], len(self.classes)
        if label.shape != expected or label.dtype != np.uint8 or int(label.max()) > last:
            raise ArtifactError(
                f"bundle '{self.bundle.folder}' gave labels {label.dtype} {label.shape} up to "
                f"{label.max()}, expected uint8 {expected} up to {last}: export it again"
            )

    def _require_fields(
        self,
        cam: NDArray[Any],
        boundary: NDArray[Any],
        displacement: NDArray[Any],
        count: int,
    ) -> None:
        """Refuse what a stranger's graphs may give in place of maps of instances."""
        grid = boundary.shape[2:]
        if (
            cam.ndim != 4
            or cam.shape[:2] != (count, len(self.classes))
            or boundary.shape != (count, 1, *grid)
            or displacement.shape != (count, 2, *grid)
            or len(grid) != 2
            or 0 in (*cam.shape, *grid)
        ):
            raise ArtifactError(
                f"bundle '{self.bundle.folder}' gave CAMs {cam.shape}, boundaries {boundary.shape} "
                f"and displacements {displacement.shape}, expected ({count}, {len(self.classes)}, "
                f"H, W), ({count}, 1, h, w) and ({count}, 2, h, w): export it again"
            )

    def _changes(self, given: NDArray[Any] | None, count: int) -> list[float | None]:
        """Of each image; a stranger's graph may give anything in place of shares."""
        if given is None:
            return [None] * count
        shares = given.ravel()
        if len(shares) != count or not ((shares >= 0) & (shares <= 1)).all():
            raise ArtifactError(
                f"bundle '{self.bundle.folder}' gave {shares[:8].tolist()} as `change`, expected "
                f"{count} shares in 0 to 1: export it again"
            )
        return [float(share) for share in shares]

    def graph(self, name: str) -> OpenGraph:
        """An opened graph of the bundle."""
        if name not in self._graphs:
            graph = open_bundle_graph(self.bundle, name, self._server, **self._options)
            self._graphs[name] = graph
            outputs = {spec.name for spec in graph.describe().outputs}
            is_labelling = name in {mode.graph for mode in self.bundle.modes.values()}
            missing = _OUTPUTS - outputs if is_labelling else set()
            if missing:
                raise ArtifactError(
                    f"graph '{name}' of bundle '{self.bundle.folder}' gives "
                    f"{', '.join(sorted(outputs))}, expected {', '.join(sorted(_OUTPUTS))} too: "
                    "export the bundle again"
                )
        return self._graphs[name]

    def close(self) -> None:
        """Give the memory of all graphs back."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()


def _open_again(folder: Path, digest: str, threads: int | None, **options: Any) -> BundlePredictor:
    """The predictor of a job, in a worker.

    Raises:
        ArtifactError: the bundle was exchanged since the job began.
    """
    predictor = BundlePredictor(folder, threads=threads, **options)
    if predictor.bundle.digest != digest:
        raise ArtifactError(
            f"'{folder}' was exchanged while it labels: put the bundle back, or begin the job again"
        )
    return predictor
