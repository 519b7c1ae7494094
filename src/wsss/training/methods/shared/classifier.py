"""Multi-label classifier whose weights read as class activation maps (Zhou et al., CVPR 2016)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...backbones.backbone import Backbone
from ...backbones.dropout import BatchKeyedDropout2d
from ...backbones.parameters import mark_new
from ...engine.networks import Network


class CamClassifier(Network):
    """Classify images so that the weights read as class activation maps (CAMs).

    The network is a backbone, channel dropout, global average and a bias-free 1x1 classifier.

    ResNet38 pools first and VGG16 classifies first; dropout of whole channels, average and
    classifier are linear, so both orders give the same logits and the cheaper one is computed.

    Args:
        backbone: from `build_backbone`; the network uses it, and does not copy it.
        num_classes: C, background not counted.
        dropout: probability of a channel of the last feature map.

    Source: AffinityNet (Ahn and Kwak, CVPR 2018) and its released code.
    """

    old_kind = "classifier"

    def __init__(self, backbone: Backbone, num_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        backbone.set_field_of_view(1)
        self.dropout = BatchKeyedDropout2d(dropout)
        self.classifier = nn.Conv2d(backbone.out_channels, num_classes, 1, bias=False)
        nn.init.xavier_uniform_(self.classifier.weight)
        mark_new(self.classifier)

    @classmethod
    def old_arguments(cls, old: Mapping[str, Any]) -> dict[str, Any]:
        """See `Network`."""
        return {"num_classes": old["num_classes"]}

    def traced(self) -> tuple[nn.Module, tuple[str, ...]]:
        """See `Network`."""
        return CamHead(self), ("activation", "logits")

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> logits (B, C)."""
        return self.classify_pooled(self.pooled_features(x))

    def features(self, x: Tensor) -> Tensor:
        """Last feature map (B, F, h, w)."""
        features: Tensor = self.backbone(x)[self.backbone.final_tap]
        return features

    def pooled_features(self, x: Tensor) -> Tensor:
        """Mean of the last feature map, (B, F): all that the head needs to be trained alone."""
        return self.features(x).mean(dim=(2, 3))

    def classify_pooled(self, pooled: Tensor) -> Tensor:
        """(B, F) from `pooled_features` -> logits (B, C), with dropout while training."""
        logits: Tensor = self.classifier(self.dropout(pooled[:, :, None, None]))
        return logits[:, :, 0, 0]

    def cam(self, x: Tensor) -> Tensor:
        """Class activation maps (B, C, h, w) >= 0, not normalised, without dropout of the head.

        VGG16 takes their square root, as the released code does.
        """
        cam = F.relu(self.classifier(self.features(x)))
        return cam.sqrt() if self.backbone.cam_square_root else cam


class CamHead(nn.Module):
    """Both readings of the classifier: activation maps, and logits of the whole image.

    The mean of the maps before the ReLU is what `CamClassifier.forward` computes, because average
    and classifier are linear.
    """

    def __init__(self, network: CamClassifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> activation (B, C, h, w) >= 0, logits (B, C)."""
        maps = self.network.classifier(self.network.features(pixels))
        activation = torch.relu(maps)
        if self.network.backbone.cam_square_root:
            activation = activation.sqrt()
        return activation, maps.mean(dim=(2, 3))
