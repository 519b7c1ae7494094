"""AffinityNet: features whose distance says whether two cells show the same class."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ....runtime.refine.feature_affinity import affinity_from_features
from ....runtime.refine.geometry import Align, image_tensor, resize, scaled_size
from ...backbones.backbone import Backbone
from ...backbones.parameters import mark_new
from ..contract import Affinities, AffinitySource
from ..shared.affinity_network import AffinityNetwork, padded
from ..shared.walk_stage import walk_settings
from .recipe import AffinityNetRecipe

HEAD_CHANNELS = (64, 128, 256)
FEATURE_CHANNELS = sum(HEAD_CHANNELS)
FIELD_OF_VIEW = 4


class AffinityNet(AffinityNetwork):
    """Compute features whose distance tells whether two grid cells show the same class.

    1x1 heads on three taps of a backbone, joined on the grid of the finest and mixed by a 1x1.

    Taps coarser than the finest are resized bilinearly behind their head (the published networks
    have all three at stride 8, so nothing is resized there). Where the backbone needs it, as
    VGG16 does, the heads have group normalisation.

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
        self.heads = nn.ModuleList(
            _head(backbone.tap_channels[tap], channels, backbone.heads_need_norm)
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

    def traced(self) -> tuple[Callable[[Mapping[str, Tensor]], Tensor], tuple[str, ...]]:
        """See `Network`."""
        return self.read, ("features",)

    def read(self, taps: Mapping[str, Tensor]) -> Tensor:
        """Compute features (B, 448, h, w), h = ceil(H / feature_stride)."""
        parts = [head(taps[tap]) for head, tap in zip(self.heads, self.taps, strict=True)]
        finest = min(range(len(parts)), key=lambda i: self.backbone.tap_strides[self.taps[i]])
        grid = parts[finest].shape[-2:]
        parts = [_resize(part, grid, self.align_corners) for part in parts]
        return F.elu(self.mix(torch.cat(parts, dim=1)))


@torch.no_grad()
def image_features(
    network: AffinityNet,
    image: NDArray[np.uint8],
    *,
    scales: tuple[float, ...],
    align: Align,
    device: torch.device,
) -> Tensor:
    """(1, C, h, w) AffinityNet features of an image.

    Under `reference` the image is padded with the mean colour to a multiple of the stride, as in
    the released code; further scales are resized to the grid of scale 1 and averaged.
    """
    size = (image.shape[0], image.shape[1])
    stride = network.feature_stride
    pixels = image_tensor(image, device)
    multiple = network.backbone.output_stride if align == "corners" else stride
    base = scaled_size(size, 1.0, align, stride) if align == "corners" else size
    grid: tuple[int, int] | None = None
    total: Tensor | None = None
    for scale in (1.0, *(value for value in scales if value != 1.0)):
        target = scaled_size(base, scale, align, multiple)
        scaled = resize(pixels, target, align)
        features = network(scaled) if align == "corners" else network(*padded(scaled, stride))
        grid = grid or (features.shape[-2], features.shape[-1])
        if scale in scales:
            resized = resize(features.float(), grid, align)
            total = resized if total is None else total + resized
    if total is None:
        raise ValueError("at least one scale is needed")
    return total / len(scales)


def _head(in_channels: int, out_channels: int, has_norm: bool) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight)
    # 8 channels a group: 8, 16 and 32 groups in the released code.
    norm = [nn.GroupNorm(out_channels // 8, out_channels)] if has_norm else []
    return nn.Sequential(convolution, *norm, nn.ELU())


def _resize(features: Tensor, grid: torch.Size, align_corners: bool) -> Tensor:
    if features.shape[-2:] == grid:
        return features
    return F.interpolate(features, size=grid, mode="bilinear", align_corners=align_corners)


def read(
    network: AffinityNet, image: NDArray[np.uint8], recipe: AffinityNetRecipe, device: torch.device
) -> Tensor:
    """(1, C, h, w) features of an image, averaged over the scales of the walk."""
    return image_features(
        network, image, scales=recipe.walk.scales, align=recipe.cam.align, device=device
    )


def affinities(features: Tensor, recipe: AffinityNetRecipe) -> Affinities:
    """Affinities of an image; nothing damps its CAMs."""
    walk = recipe.walk
    affinity = affinity_from_features(
        features, radius=walk.radius, beta=walk.beta, borders=walk.borders
    )
    return affinity, None


def maps(
    network: AffinityNet, image: NDArray[np.uint8], recipe: AffinityNetRecipe, device: torch.device
) -> dict[str, Tensor]:
    """What the exported graph gives."""
    return {"affinity": affinities(read(network, image, recipe, device), recipe)[0]}


SOURCE = AffinitySource("features", "affinity", AffinityNet, read, affinities, maps, walk_settings)
