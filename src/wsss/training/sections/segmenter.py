"""The segmenter, which all methods end in."""

from typing import Literal

from .base import Fraction, Scales, Section
from .crf import NO_CRF, CrfSection
from .train import TrainSettings


class SegmenterSection(Section):
    """The network that is trained on the pseudo labels."""

    train: TrainSettings
    head: Literal["largefov", "resnet38", "linear", "dilated"] = "largefov"
    """DeepLab-LargeFOV, the two dilated layers of the ResNet38 segmenter, one 1x1 layer, or one 3x3
    layer of dilation 12."""
    output_stride: Literal[8, 16, 32] | None = None
    """Backbone stride of this stage; default: that of the backbone section."""
    start: Literal["weights", "classifier"] = "weights"
    """Backbone (and class planes of a linear head) start from weights or the trained classifier."""
    balance: Fraction = 0.0
    """How far the loss evens out labels of a batch: 0 all pixels weigh alike, as published; 1 all
    labels weigh alike, however few their pixels; between them pixels weigh count ** -balance."""
    label_stride: Literal[1, 2, 4, 8, 16] = 8
    """Pixels per cell at which logits meet labels in the loss."""
    scales: Scales = (1.0,)
    """Test scales; logits are averaged."""
    flip: bool = True
    """Average with the logits of the mirrored image."""
    crf: CrfSection = NO_CRF
    """Dense CRF on the test-time scores."""
