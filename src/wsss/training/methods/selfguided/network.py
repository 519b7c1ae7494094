"""One network with two heads: it classifies, and it segments by the labels that it makes itself."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...backbones.backbone import Backbone
from ...backbones.layers import BatchKeyedDropout2d
from ...backbones.parameters import mark_new
from ..shared.segmenter_network import Segmenter


class SelfGuidedMaps(NamedTuple):
    """All that the network says of some images.

    Attributes:
        classes: (B, C) logits of the classification head.
        activation: (B, C, h, w) its activation maps >= 0, not normalised, on the grid of features;
            without the square root of VGG16, whose gradient at 0 is infinite.
        features: (B, F, h, w) of the intermediate taps, on the grid of the finer one.
        logits: (B, C + 1, h', w') of the segmentation head, plane 0 background.
    """

    classes: Tensor
    activation: Tensor
    features: Tensor
    logits: Tensor


class SelfGuidedNet(Segmenter):
    """Segment images with a segmentation and a classification head on the last feature map.

    To others it is a segmenter: `forward` gives the logits of labels and nothing more. Activation
    maps and the two intermediate taps are for the making of labels. Source: our design,
    after the abstract of the paper.

    Args:
        backbone: from `build_backbone`; the network uses it, and does not copy it.
        num_classes: C, background not counted.
        head: head of the segmenter, as for `Segmenter`.
        align_corners: how taps of unlike stride are brought to one grid, as for `AffinityNet`.
        dropout: probability that a channel of the last feature map is dropped for the classifier.

    Attributes:
        feature_stride: pixels per cell of activation maps and features.
    """

    old_kind = "selfguided"

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        head: str,
        align_corners: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(backbone, num_classes, head)
        backbone.set_field_of_view(1)  # the classifier's; the head has a wide one of its own
        self.align_corners = align_corners
        self.taps = backbone.affinity_taps[:2]
        self.feature_stride = min(backbone.tap_strides[tap] for tap in self.taps)
        self.dropout = BatchKeyedDropout2d(dropout)
        self.classifier = nn.Conv2d(backbone.out_channels, num_classes, 1, bias=False)
        nn.init.xavier_uniform_(self.classifier.weight)
        mark_new(self.classifier)

    @classmethod
    def old_arguments(cls, old: Mapping[str, Any]) -> dict[str, Any]:
        """See `Network`."""
        corners = {"align_corners": old["align"] == "corners"}
        return super().old_arguments(old) | corners

    @torch.no_grad()
    def take_classifier(self, weight: Tensor) -> None:
        """Start the classification head, and the class planes of a `linear` one, as a classifier's.

        Args:
            weight: (C, F, 1, 1) of `CamClassifier.classifier`.
        """
        super().take_classifier(weight)
        self.classifier.weight.copy_(weight)
        mark_new(self.classifier, False)

    def maps(self, pixels: Tensor, inside: Tensor | None = None) -> SelfGuidedMaps:
        """Everything that training and the making of labels need, from one pass; see `Network`."""
        found = self.backbone(pixels, inside)
        last = found[self.backbone.final_tap]
        features = self._features(found)
        grid = (features.shape[-2], features.shape[-1])
        pooled = self.dropout(last.mean(dim=(2, 3), keepdim=True))
        return SelfGuidedMaps(
            classes=self.classifier(pooled)[:, :, 0, 0],
            activation=self._to_grid(F.relu(self.classifier(last)), grid),
            features=features,
            logits=self.head(last),
        )

    def activation_and_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Activation maps as `CamClassifier.cam`, and the features of `maps`, from one pass.

        Returns:
            (B, C, h, w) on the grid of the last map, and (B, F, h', w').
        """
        found = self.backbone(pixels)
        cam = F.relu(self.classifier(found[self.backbone.final_tap]))
        return cam.sqrt() if self.backbone.cam_square_root else cam, self._features(found)

    def _features(self, found: Mapping[str, Tensor]) -> Tensor:
        """The taps below the last map, on the grid of the finest."""
        fine = min(self.taps, key=lambda tap: self.backbone.tap_strides[tap])
        grid = (found[fine].shape[-2], found[fine].shape[-1])
        return torch.cat([self._to_grid(found[tap], grid) for tap in self.taps], 1)

    def _to_grid(self, maps: Tensor, grid: tuple[int, int]) -> Tensor:
        if maps.shape[-2:] == grid:
            return maps
        return F.interpolate(maps, grid, mode="bilinear", align_corners=self.align_corners)


class AllMaps(nn.Module):
    """The network as it is trained: `forward` gives all of its maps."""

    def __init__(self, network: SelfGuidedNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, inside: Tensor | None = None) -> SelfGuidedMaps:
        """Compute the maps of images; see `Network`."""
        return self.network.maps(pixels, inside)
