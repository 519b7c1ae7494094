"""The segmenter, which all methods end in."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Fraction, NonNegative, Scales, Section
from .crf import NO_CRF, CrfSection
from .train import TrainSettings


class SecSection(Section):
    """Seed, expand and constrain: the loss of SEC (Kolesnikov and Lampert, ECCV 2016), with the
    settings of its released code."""

    seed: NonNegative = 1.0
    """Weight of the cross entropy where there are labels; 0 leaves it out."""
    expand: NonNegative = 1.0
    """Weight of the terms that ask for a share of the image for each class in it, for background
    likewise, and for no cell of other classes; 0 leaves them out."""
    constrain: NonNegative = 1.0
    """Weight of the divergence from the network's own dense CRF; 0 leaves it out."""
    object_decay: Annotated[float, Field(gt=0, lt=1)] = 0.996
    """By how much each next cell, from the highest probability down, counts less for a class in the
    image. Meant for 41 x 41 cells; on other grids its power lets the same share of the image
    count."""
    background_decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """The same of background."""
    crf: CrfSection = CrfSection(gaussian_sxy=3 / 12, bilateral_sxy=80 / 12)
    """Of the last term, on the image reduced to the grid of labels: its pixels are cells."""

    @model_validator(mode="after")
    def _something_is_learnt(self) -> "SecSection":
        if not (self.seed or self.expand or self.constrain):
            raise ValueError("`seed`, `expand` and `constrain` are all 0, one must be above")
        if self.constrain and not self.crf.iterations:
            raise ValueError(
                f"`constrain` is {self.constrain:g}, but `crf.iterations` is 0: set `constrain` to "
                "0, or `crf.iterations` to at least 1"
            )
        return self


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
    loss: Literal["cross_entropy", "sec"] = "cross_entropy"
    """cross_entropy: of every labelled pixel; sec: see the section below."""
    sec: SecSection = SecSection()
    """Used under loss = sec."""
