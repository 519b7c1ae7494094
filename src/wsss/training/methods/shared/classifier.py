"""Multi-label classifier whose weights read as class activation maps (Zhou et al., CVPR 2016)."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ....runtime.refine.cam import multi_scale_cam
from ....runtime.refine.geometry import image_tensor, resize
from ...backbones.backbone import Backbone
from ...backbones.layers import BatchKeyedDropout2d
from ...backbones.parameters import mark_new
from ...engine.networks import Network
from ...recipe.sections import CamSection


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

    def traced(self) -> tuple[Callable[[Mapping[str, Tensor]], Any], tuple[str, ...]]:
        """See `Network`."""
        return self.read_both, ("activation", "logits")

    def read(self, taps: Mapping[str, Tensor]) -> Tensor:
        """Compute logits (B, C)."""
        return self.classify_pooled(taps[self.backbone.final_tap].mean(dim=(2, 3)))

    def read_both(self, taps: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute activation maps and the logits of the whole image from one product.

        The mean of the maps before the ReLU is what `read` computes, because average and classifier
        are linear.

        Returns:
            Activation (B, C, h, w) >= 0 as that of `cam`, and logits (B, C).
        """
        maps = self.classifier(taps[self.backbone.final_tap])
        return self._activation(maps), maps.mean(dim=(2, 3))

    def features(self, pixels: Tensor) -> Tensor:
        """Last feature map (B, F, h, w) of images."""
        features: Tensor = self.backbone(pixels)[self.backbone.final_tap]
        return features

    def pooled_features(self, pixels: Tensor) -> Tensor:
        """Mean of the last feature map, (B, F): all that the head needs to be trained alone."""
        return self.features(pixels).mean(dim=(2, 3))

    def classify_pooled(self, pooled: Tensor) -> Tensor:
        """(B, F) from `pooled_features` -> logits (B, C), with dropout while training."""
        logits: Tensor = self.classifier(self.dropout(pooled[:, :, None, None]))
        return logits[:, :, 0, 0]

    def cam(self, pixels: Tensor) -> Tensor:
        """Class activation maps (B, C, h, w) >= 0, not normalised, without dropout of the head.

        VGG16 takes their square root, as the released code does.
        """
        return self._activation(self.classifier(self.features(pixels)))

    def _activation(self, maps: Tensor) -> Tensor:
        cam = F.relu(maps)
        return cam.sqrt() if self.backbone.cam_square_root else cam


@torch.no_grad()
def image_logits(
    network: CamClassifier, image: NDArray[np.uint8], section: CamSection, device: torch.device
) -> Tensor:
    """(1, C) logits of the whole image, resized to a square of the crop size."""
    side = section.train.augmentation.crop_size
    logits: Tensor = network(resize(image_tensor(image, device), (side, side), "reference"))
    return logits.float().cpu()


def class_probabilities(
    network: CamClassifier, image: NDArray[np.uint8], section: CamSection, device: torch.device
) -> NDArray[np.float32]:
    """(C,) probability that each class is in the image."""
    return image_logits(network, image, section, device)[0].sigmoid().numpy()


@torch.no_grad()
def image_activation(
    network: CamClassifier, image: NDArray[np.uint8], section: CamSection, device: torch.device
) -> Tensor:
    """(C, h, w) multi-scale activation of all classes, not normalised."""
    return multi_scale_cam(
        network.cam,
        image,
        scales=section.scales,
        flip=section.flip,
        map_stride=section.map_stride,
        stride=network.backbone.output_stride,
        align=section.align,
        device=device,
    )
