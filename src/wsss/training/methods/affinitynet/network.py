"""AffinityNet: features whose distance says whether two cells show the same class."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...backbones.backbone import Backbone
from ...backbones.parameters import mark_new
from ..shared.affinity_network import AffinityNetwork

HEAD_CHANNELS = (64, 128, 256)
FEATURE_CHANNELS = sum(HEAD_CHANNELS)
FIELD_OF_VIEW = 4


class AffinityNet(AffinityNetwork):
    """Compute features whose distance tells whether two grid cells show the same class.

    1x1 heads on three taps of a backbone, joined on the grid of the finest and mixed by a 1x1.

    Taps coarser than the finest are resized bilinearly behind their head (the published networks
    have all three at stride 8, so nothing is resized there). Where the backbone is VGG16 the
    heads have group normalisation, because its activations are not normalised.

    Args:
        backbone: from `build_backbone`; the network uses it, and does not copy it.
        align_corners: how taps of unlike stride are brought to one grid: corner cells on corner
            cells (`corners` alignment), or stretched over the same area (`reference`).

    Attributes:
        feature_stride: pixels per cell of the features.

    Source: Ahn and Kwak, CVPR 2018, widths of the released code (the paper's are larger).
    """

    old_kind = "affinitynet"

    def __init__(self, backbone: Backbone, align_corners: bool = False) -> None:
        super().__init__(backbone, align_corners)
        backbone.set_field_of_view(FIELD_OF_VIEW)
        self.taps = backbone.affinity_taps
        self.feature_stride = min(backbone.tap_strides[tap] for tap in self.taps)
        normalise = backbone.name == "vgg16"
        self.heads = nn.ModuleList(
            _head(backbone.tap_channels[tap], channels, normalise)
            for tap, channels in zip(self.taps, HEAD_CHANNELS, strict=True)
        )
        self.mix = nn.Conv2d(FEATURE_CHANNELS, FEATURE_CHANNELS, 1, bias=False)
        nn.init.xavier_uniform_(self.mix.weight, gain=4)
        mark_new(self.heads)
        mark_new(self.mix)

    @classmethod
    def old_arguments(cls, old: Mapping[str, Any]) -> dict[str, Any]:
        """See `Network`."""
        return {"align_corners": old["align"] == "corners"}

    def traced(self) -> tuple[nn.Module, tuple[str, ...]]:
        """See `Network`."""
        return self, ("features",)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> features (B, 448, h, w), h = ceil(H / stride)."""
        maps = self.backbone(x)
        parts = [head(maps[tap]) for head, tap in zip(self.heads, self.taps, strict=True)]
        finest = min(range(len(parts)), key=lambda i: self.backbone.tap_strides[self.taps[i]])
        grid = parts[finest].shape[-2:]
        parts = [_resize(part, grid, self.align_corners) for part in parts]
        return F.elu(self.mix(torch.cat(parts, dim=1)))


def _head(in_channels: int, out_channels: int, normalise: bool) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight)
    # 8 channels a group: 8, 16 and 32 groups in the released code.
    norm = [nn.GroupNorm(out_channels // 8, out_channels)] if normalise else []
    return nn.Sequential(convolution, *norm, nn.ELU())


def _resize(features: Tensor, grid: torch.Size, align_corners: bool) -> Tensor:
    if features.shape[-2:] == grid:
        return features
    return F.interpolate(features, size=grid, mode="bilinear", align_corners=align_corners)
