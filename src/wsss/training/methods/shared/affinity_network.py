"""The base of networks that say which neighbouring cells belong together."""

from ...backbones.backbone import Backbone
from ...engine.networks import Network


class AffinityNetwork(Network):
    """A backbone with a head whose maps become affinities; see `contract.AffinitySource`.

    Attributes:
        feature_stride: pixels per cell of the maps.
    """

    feature_stride: int

    def __init__(self, backbone: Backbone, align_corners: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.align_corners = align_corners

    @property
    def map_stride(self) -> int:
        """See `Network`."""
        return self.feature_stride
