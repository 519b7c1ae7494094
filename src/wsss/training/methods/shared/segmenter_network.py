"""Segmenters that are trained on pseudo labels: DeepLab-LargeFOV and the ResNet38 one.

Sources: DeepLab-LargeFOV (Chen et al., ICLR 2015); "Wider or Deeper" (Wu et al., 2019) and its
released code for the head of ResNet38.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ....errors import ConfigError
from ....runtime.refine.dense_crf import DenseCrf, unary_from_logits
from ....runtime.refine.geometry import Align, image_tensor, resize, scaled_size
from ...backbones.backbone import Backbone
from ...backbones.layers import BatchKeyedDropout2d
from ...backbones.parameters import mark_new
from ...engine.networks import Network
from ...recipe.sections import SegmenterSection

DILATION_AT_STRIDE_8 = 12
HIDDEN_CHANNELS = 512
HEADS = ("largefov", "resnet38", "linear", "dilated")


class Segmenter(Network):
    """Segment images with a backbone and a head with a large field of view.

    - `largefov` on VGG16: its own fc6 (3x3, dilation 12) and fc7, dropout 0.5, 1x1 to C + 1, as
      published. On backbones without a field of view of their own: 3x3 with dilation 12 to 512
      channels, ReLU, dropout 0.5, 1x1 to C + 1.
    - `resnet38`: 3x3 to 512 channels, ReLU, 3x3 to C + 1, both with dilation 12.
    - `linear`: dropout 0.5, 1x1 to C + 1; its class planes can start from a CAM classifier.
    - `dilated`: a single 3x3 with dilation 12 to C + 1, without bias or dropout. CIAN always has
      it, behind its affinity module, as published; the self-guided network by default, in our
      design; other segmenters where a recipe says so.

    The dilation is meant for stride 8 and shrinks with the grid: 6 at stride 16, 3 at 32.
    Deviation: dropout drops whole channels, where DeepLab drops single cells; no normalisation
    between the layers of the heads, because frozen statistics of new layers would mean nothing.

    Args:
        backbone: from `build_backbone`; the network uses it, and does not copy it.
        num_classes: C, background not counted.
        head: largefov, resnet38, linear or dilated, as above.

    Raises:
        ConfigError: unknown head.
    """

    old_kind = "segmenter"

    def __init__(self, backbone: Backbone, num_classes: int, head: str = "largefov") -> None:
        super().__init__()
        if head not in HEADS:
            raise ConfigError(f"unknown segmenter head '{head}': choose one of {', '.join(HEADS)}")
        self.backbone = backbone
        self.num_classes = num_classes
        self.is_linear = head == "linear"
        backbone.set_field_of_view(DILATION_AT_STRIDE_8)
        self.head = nn.Sequential(*_head_layers(backbone, num_classes + 1, head))
        mark_new(self.head)

    @classmethod
    def old_arguments(cls, old: Mapping[str, Any]) -> dict[str, Any]:
        """See `Network`."""
        return {"num_classes": old["num_classes"], "head": old["head"]}

    @torch.no_grad()
    def take_classifier(self, weight: Tensor) -> None:
        """Start the class planes of a `linear` head as the classifier's CAMs, background at 0.

        Other heads have no such planes and stay as they are.

        Args:
            weight: (C, F, 1, 1) of `CamClassifier.classifier`.
        """
        if self.is_linear:
            background = weight.new_zeros(1, *weight.shape[1:])
            self.head[-1].load_state_dict({"weight": torch.cat([background, weight])}, strict=False)

    def read(self, taps: Mapping[str, Tensor]) -> Tensor:
        """Compute logits (B, C + 1, h, w), plane 0 background."""
        logits: Tensor = self.head(taps[self.backbone.final_tap])
        return logits


@torch.no_grad()
def segment_logits(
    network: Segmenter,
    image: NDArray[np.uint8],
    section: SegmenterSection,
    align: Align,
    device: torch.device,
) -> Tensor:
    """(C + 1, H, W) logits of an image, averaged over scales and mirrors."""
    size = (image.shape[0], image.shape[1])
    pixels = image_tensor(image, device)
    total: Tensor | None = None
    for scale in section.scales:
        target = scaled_size(size, scale, align, network.backbone.output_stride)
        scaled = resize(pixels, target, align)
        batch = torch.cat([scaled, scaled.flip(-1)]) if section.flip else scaled
        logits = network(batch).float()
        if section.flip:
            logits = (logits[:1] + logits[1:].flip(-1)) / 2
        full = resize(logits, size, align)[0]
        total = full if total is None else total + full
    if total is None:
        raise ValueError("at least one scale is needed")
    return total / len(section.scales)


def segment_image(
    network: Segmenter,
    image: NDArray[np.uint8],
    section: SegmenterSection,
    align: Align,
    device: torch.device,
    present: Sequence[int] | None = None,
) -> NDArray[np.uint8]:
    """(H, W) label map; the argmax of the logits, after the optional dense CRF.

    Args:
        present: the only classes that compete; by default all do.
    """
    planes = segment_logits(network, image, section, align, device)
    classes = range(network.num_classes) if present is None else present
    labels = torch.tensor([0, *(index + 1 for index in classes)], device=planes.device)
    planes = planes[labels]
    crf = section.crf.settings()
    if crf is not None:
        planes = DenseCrf(image, crf, device=device).refine(unary_from_logits(planes))
    return labels[planes.argmax(0)].to(torch.uint8).cpu().numpy()


def _head_layers(backbone: Backbone, num_labels: int, head: str) -> Sequence[nn.Module]:
    dilation = max(1, round(DILATION_AT_STRIDE_8 * 8 / backbone.output_stride))
    if head == "linear" or (head == "largefov" and backbone.has_field_of_view):
        return BatchKeyedDropout2d(0.5), _classifier(backbone.out_channels, num_labels, 1, 1)
    if head == "dilated":
        return (_classifier(backbone.out_channels, num_labels, 3, dilation, bias=False),)
    hidden = nn.Conv2d(
        backbone.out_channels, HIDDEN_CHANNELS, 3, padding=dilation, dilation=dilation
    )
    nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
    nn.init.zeros_(hidden.bias)  # type: ignore[arg-type]
    if head == "largefov":
        last = _classifier(HIDDEN_CHANNELS, num_labels, 1, 1)
        return hidden, nn.ReLU(), BatchKeyedDropout2d(0.5), last
    return hidden, nn.ReLU(), _classifier(HIDDEN_CHANNELS, num_labels, 3, dilation)


def _classifier(
    in_channels: int, num_labels: int, kernel: int, dilation: int, bias: bool = True
) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    layer = nn.Conv2d(
        in_channels, num_labels, kernel, padding=padding, dilation=dilation, bias=bias
    )
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
