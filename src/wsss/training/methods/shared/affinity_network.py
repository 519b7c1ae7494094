"""The base of networks that say which neighbouring cells belong together."""

import torch
from torch import Tensor

from ....runtime.refine.geometry import pad_to_multiple
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


def padded(pixels: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Pad images at the right and below until the stride divides both sides.

    Returns:
        What `Network.forward` takes: the pixels, and which of them show the image.
    """
    shown = torch.ones_like(pixels[:1, :1], dtype=torch.bool)
    return pad_to_multiple(pixels, stride), pad_to_multiple(shown, stride)
