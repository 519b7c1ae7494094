"""Apply a bundle to images, without training code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, ConfigError, ShapeError
from ..backends.contract import OpenGraph
from ..backends.registry import Backend, Device, open_graph
from ..backends.triton.options import TritonOptions
from ..instances.instance_map import InstanceMap
from .inputs import label_inputs
from .open import Bundle, check_again, open_bundle

if TYPE_CHECKING:
    from ..instances.maps import InstanceMaps  # which imports torch

BundleKind = Literal["walk", "segmenter"]
"""walk: CAMs of the classes in the image after the random walk; segmenter: the trained network."""
GRAPH_OF: dict[BundleKind, str] = {"walk": "label", "segmenter": "segmenter"}
"""The graph of each kind."""
_APART = frozenset({"cam", "irnet", "refine"})
"""Graphs that instances need: `label` tells neither CAMs nor boundaries."""
_OUTPUTS = frozenset({"label", "confidence", "scores"})


@dataclass(frozen=True)
class Labelled:
    """What a graph says of one image.

    Attributes:
        label: (H, W) uint8: 0 background, class index + 1.
        confidence: (H, W) float32 in [0, 1]: the winner's share of all scores of its pixel.
        scores: (C + 1, h, w) float32, plane 0 the background; on the grid of the walk, or at the
            size of the image from a segmenter.
        classes: that took part, ascending; of a segmenter all.
        change: share of the cells of the walk's grid whose label the walk changed, in [0, 1]; None
            of a segmenter, and of bundles that do not tell it.
    """

    label: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: tuple[int, ...]
    change: float | None = None


class BundlePredictor:
    """Opens the graphs of a bundle when they are first needed.

    Attributes:
        bundle: what was opened and checked.
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
    ) -> None:
        """Check a bundle; see `open_bundle`, `open_graph` and `open_triton` for what is refused.

        Args:
            server: where the graphs run for the backend triton, and only for it; it must serve
                this very bundle.
            thresholds: see `present_input`.
        """
        if (backend == "triton") != (server is not None):
            raise ConfigError(
                "backend 'triton' needs a server, and no other backend takes one: give `backend` "
                "triton together with `server`"
            )
        self.bundle: Bundle = open_bundle(folder)
        self.classes = self.bundle.classes
        classifier = self.bundle.settings.get("classifier", {})
        if thresholds is not None and not classifier.get("takes_thresholds"):
            raise ArtifactError(
                f"bundle '{folder}' was exported before its graphs took thresholds of classes: "
                "export it again"
            )
        self._thresholds = thresholds
        self._options: dict[str, Any] = {"backend": backend, "device": device, "threads": threads}
        self._server = server
        self._graphs: dict[str, OpenGraph] = {}

    def default_kind(self, has_labels: bool) -> BundleKind:
        """walk where image-level labels are given or there is no segmenter, else segmenter."""
        return "walk" if has_labels or "segmenter" not in self.bundle.graphs else "segmenter"

    def predict(
        self,
        image: NDArray[np.uint8],
        labels: Sequence[int] | None = None,
        kind: BundleKind = "walk",
    ) -> Labelled:
        """Everything that the graph says of an image.

        Args:
            image: (H, W, 3) uint8 RGB.
            labels: classes in the image; None: those that the classifier finds.

        Raises:
            ConfigError: unknown kind, or labels for a segmenter; ArtifactError: the bundle lacks
            the graph; ShapeError: no image.
        """
        if image.ndim != 3:
            raise ShapeError(f"image is {image.shape}, expected (H, W, 3) RGB")
        return self.predict_batch(image[None], [labels], kind)[0]

    def predict_batch(
        self,
        images: NDArray[np.uint8],
        labels: Sequence[Sequence[int] | None],
        kind: BundleKind = "walk",
    ) -> list[Labelled]:
        """As `predict`, for images of one size that go through the graph together.

        Args:
            images: (B, H, W, 3) uint8 RGB.
            labels: of each image.
        """
        return self._labelled(self._run(images, labels, kind), len(images))

    @property
    def tells_instances(self) -> bool:
        """Whether `predict_instances` can do its work: a bundle of IRNet with displacements."""
        graphs = self.bundle.graphs
        given = {spec.name for spec in graphs["irnet"].outputs} if "irnet" in graphs else set()
        return graphs.keys() >= _APART and "displacement" in given

    def predict_instances(
        self, image: NDArray[np.uint8], labels: Sequence[int] | None = None
    ) -> tuple[Labelled, InstanceMap]:
        """As `predict` by `walk`, and the single objects; needs torch.

        Raises:
            ArtifactError: the bundle tells no instances.
        """
        from ..instances.maps import group_maps

        ((labelled, maps),) = self.predict_instance_maps(image[None], [labels])
        return labelled, group_maps([maps])[0]

    def predict_instance_maps(
        self, images: NDArray[np.uint8], labels: Sequence[Sequence[int] | None]
    ) -> list[tuple[Labelled, "InstanceMaps"]]:
        """As `predict_batch` by `walk`, and what instances are made from; needs torch.

        Args:
            images, labels: see `predict_batch`.

        Raises:
            ArtifactError: the bundle tells no instances, or its graphs give other maps.
        """
        if not self.tells_instances:
            raise ArtifactError(
                f"bundle '{self.bundle.folder}' tells no instances: export a run of method irnet "
                "with irnet.displacement = true, with all its graphs"
            )
        from .instances import maps_of

        inputs = label_inputs(
            images,
            labels,
            len(self.classes),
            self.bundle.layout,
            takes_classes=True,
            thresholds=self._thresholds,
        )
        pixels = {"image": inputs["image"]}
        cam, irnet = self.graph("cam").run(pixels), self.graph("irnet").run(pixels)
        self._require_fields(cam["cam"], irnet["boundary"], irnet["displacement"], len(images))
        found = self.graph("refine").run(inputs | cam | {"boundary": irnet["boundary"]})
        self._require_labels(found["label"], images)
        size = (images.shape[1], images.shape[2])
        result = []
        for index, labelled in enumerate(self._labelled(found, len(images))):
            apart = {name: maps[index] for name, maps in irnet.items()}
            cams = cam["cam"][index]
            maps = maps_of(self.bundle, cams, apart, labelled.classes, size)
            result.append((labelled, maps))
        return result

    def _labelled(self, found: Mapping[str, NDArray[Any]], count: int) -> list[Labelled]:
        everything = tuple(range(len(self.classes)))
        used = found.get("used_classes")
        classes = (
            [everything] * count
            if used is None
            else [tuple(int(i) for i in np.flatnonzero(row)) for row in used]
        )
        planes = (found["label"], found["confidence"], found["scores"])
        changes = self._changes(found.get("change"), count)
        return [Labelled(*each) for each in zip(*planes, classes, changes, strict=True)]

    def label(
        self,
        image: NDArray[np.uint8],
        labels: Sequence[int] | None = None,
        kind: BundleKind = "walk",
        *,
        crf: bool = False,
    ) -> NDArray[np.uint8]:
        """(H, W) uint8 label map; `crf` refines it by the recipe's dense CRF, which needs torch."""
        if not crf:  # then the other outputs need not be computed, or come from a server
            found = self._run(image[None], [labels], kind, ["label"])
            label: NDArray[np.uint8] = found["label"][0]
            return label
        return self.refine(image, self.predict(image, labels, kind), kind)

    def refine(
        self, image: NDArray[np.uint8], found: Labelled, kind: BundleKind
    ) -> NDArray[np.uint8]:
        """(H, W) uint8 label map by the recipe's dense CRF from what a graph says of the image."""
        from .crf import refine

        return refine(self.bundle, image, found, kind)

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
            if self._server is None:
                path, runs_code = self._file_of(name)
                graph = open_graph(path, allow_host_code=runs_code, **self._options)
            else:
                from .served import open_served

                graph = open_served(self.bundle, name, self._server)
            self._graphs[name] = graph
            outputs = {spec.name for spec in graph.describe().outputs}
            missing = _OUTPUTS - outputs if name in GRAPH_OF.values() else set()
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

    def _run(
        self,
        images: NDArray[np.uint8],
        labels: Sequence[Sequence[int] | None],
        kind: BundleKind,
        outputs: Sequence[str] | None = None,
    ) -> dict[str, NDArray[Any]]:
        if kind not in get_args(BundleKind):
            choices = ", ".join(get_args(BundleKind))
            raise ConfigError(f"a bundle does not label by '{kind}': choose of {choices}")
        if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
            raise ShapeError(f"image is {images.shape[1:]}, expected (H, W, 3) RGB")
        if kind == "segmenter" and any(each is not None for each in labels):
            raise ConfigError("a segmenter takes no image-level labels: leave them out")
        inputs = label_inputs(
            images,
            labels,
            len(self.classes),
            self.bundle.layout,
            takes_classes=kind == "walk",
            thresholds=self._thresholds,
        )
        found = self.graph(GRAPH_OF[kind]).run(inputs, outputs)
        self._require_labels(found["label"], images)
        return found

    def _file_of(self, name: str) -> tuple[Path, bool]:
        """The graph or engine, and whether it may bring host code of its own."""
        path = self.bundle.graph_path(name)
        if self._options["backend"] != "tensorrt":
            return check_again(self.bundle, path.name), False
        engines = self.bundle.engines_of(name)
        if not engines:
            raise ArtifactError(
                f"bundle '{self.bundle.folder}' has no TensorRT engine of graph '{name}': build it "
                f"on this machine by `wsss export {self.bundle.folder} --tensorrt`"
            )
        from .engines import engine_for_this_machine

        engine = engine_for_this_machine(engines)
        # TensorRT runs a version-compatible plan only with the code that lies in it.
        return check_again(self.bundle, engine.file), engine.version_compatible
