"""A graph of a bundle while it is being written, and what its run decides about it."""

from dataclasses import dataclass, field

import onnx

from ...runtime.bundle.inputs import Layout
from ...runtime.refine.geometry import Align
from ...runtime.refine.pseudo_labels import WalkSettings
from ...training.methods.contract import AffinityKind
from .builder import Builder


@dataclass(frozen=True)
class Walking:
    """The random walk of the graphs.

    Attributes:
        affinity_stage: whose network gives the affinities.
        affinity_kind: what they are made of, see `AffinitySource`.
        affinity_scales: of the image.
        walk: random walk and background rule.
    """

    affinity_stage: str
    affinity_kind: AffinityKind
    affinity_scales: tuple[float, ...]
    walk: WalkSettings


@dataclass(frozen=True)
class GraphSettings:
    """What the graphs of a run depend on besides its networks.

    Attributes:
        class_threshold: probability from which the classifier calls a class present.
        classifier_side: of the square that it sees for that, in pixels.
        segmenter_scales, cam_scales: of the image.
        walking: None for methods without a walk, which have no graphs that take it.
    """

    num_classes: int
    layout: Layout
    align: Align
    cam_scales: tuple[float, ...]
    cam_flip: bool
    map_stride: int
    classifier_side: int
    class_threshold: float
    segmenter_scales: tuple[float, ...]
    segmenter_flip: bool
    walking: Walking | None

    @property
    def affinity_stage(self) -> str:
        """See `Walking`; '' where nothing walks."""
        return self.walking.affinity_stage if self.walking else ""

    @property
    def affinity_kind(self) -> AffinityKind:
        """See `Walking`; for graphs that take a walk."""
        return self._required().affinity_kind

    @property
    def walk(self) -> WalkSettings:
        """See `Walking`; for graphs that take a walk."""
        return self._required().walk

    @property
    def affinity_scales(self) -> tuple[float, ...]:
        """See `Walking`; for graphs that take a walk."""
        return self._required().affinity_scales

    def _required(self) -> Walking:
        if self.walking is None:
            raise ValueError("these graphs have no walk")
        return self.walking


@dataclass
class GraphContext:
    """A graph that is being written."""

    settings: GraphSettings
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def at(self, prefix: str) -> Builder:
        """Where nodes of one part are appended."""
        return Builder(self.nodes, self.constants, prefix)
