"""A graph of a bundle while it is being written, and what its run decides about it."""

from dataclasses import dataclass, field

import onnx

from ..runtime.geometry import Align
from ..runtime.graph_inputs import Layout
from ..runtime.pseudo_labels import WalkSettings
from ..runtime.walks.graph_builder import Builder


@dataclass(frozen=True)
class GraphSettings:
    """What the graphs of a run depend on besides its networks.

    Attributes:
        affinity_stage: whose network gives the affinities: `affinity` (AffinityNet) or `irnet`.
        class_threshold: probability from which the classifier calls a class present.
        classifier_side: of the square that it sees for that, in pixels.
        walk: random walk and background rule.
        affinity_scales, segmenter_scales, cam_scales: of the image.
    """

    num_classes: int
    layout: Layout
    align: Align
    affinity_stage: str
    cam_scales: tuple[float, ...]
    cam_flip: bool
    map_stride: int
    classifier_side: int
    class_threshold: float
    affinity_scales: tuple[float, ...]
    walk: WalkSettings
    segmenter_scales: tuple[float, ...]
    segmenter_flip: bool


@dataclass
class Draft:
    """A graph that is being written."""

    settings: GraphSettings
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def at(self, prefix: str) -> Builder:
        """Where nodes of one part are appended."""
        return Builder(self.nodes, self.constants, prefix)
