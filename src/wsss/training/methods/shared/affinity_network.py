"""What AffinityNet and IRNet have in common: both say which neighbouring cells belong together."""

from torch import nn

from ...backbones.backbone import Backbone


class AffinityNetwork(nn.Module):
    """A backbone with a head whose maps become affinities; see `stages.labels.image_affinity`.

    Attributes:
        feature_stride: pixels per cell of the maps.
    """

    feature_stride: int

    def __init__(self, backbone: Backbone, align_corners: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.align_corners = align_corners
