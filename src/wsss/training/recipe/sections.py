"""Sections that recipes of several methods share: backbone, data, CRF, seeds, walk, segmenter."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...runtime.refine.dense_crf import CrfSettings
from ..backbones.build import BACKBONES
from .base import BackboneName, BackboneStride, Fraction, NonNegative, Positive, Scales, Section
from .train import TrainSettings


class BackboneSection(Section):
    """The network that all stages start from."""

    name: BackboneName
    """Architecture; `small` is for training from scratch on small images."""
    output_stride: BackboneStride = 8
    """Pixels per cell of the last feature map; each backbone has some of these strides."""
    from_scratch: bool = False
    """Start from random weights, which `small` can; otherwise `--weights` is required."""

    @model_validator(mode="after")
    def _scratch_is_possible(self) -> "BackboneSection":
        if self.from_scratch and not BACKBONES[self.name].from_scratch:
            able = " or ".join(f"`{name}`" for name, kind in BACKBONES.items() if kind.from_scratch)
            raise ValueError(
                f"`from_scratch` is true, but `{self.name}` keeps layers of its ImageNet weights "
                f"frozen: give `weights_path`, or take the backbone {able}"
            )
        return self


class DataSection(Section):
    """Which lists of the image set are used."""

    train_split: str = "train"
    """List that every stage learns from and that gets pseudo labels."""
    val_split: str = "val"
    """List that measures the classifier and the segmenter; never learnt from."""
    figures_split: str = "train"
    """List on which CAMs, seeds and pseudo labels are measured, where it has masks; the training
    list where the image set has no such list."""


class CrfSection(Section):
    """Dense CRF with a smoothness and an appearance kernel."""

    iterations: Annotated[int, Field(ge=0, le=100)] = 10
    """0 switches the CRF off."""
    gaussian_sxy: Positive = 3.0
    """Reach of the smoothness kernel in pixels."""
    gaussian_compat: NonNegative = 3.0
    """Weight of the smoothness kernel."""
    bilateral_sxy: Positive = 80.0
    """Reach of the appearance kernel in pixels."""
    bilateral_srgb: Positive = 13.0
    """Reach of the appearance kernel in colour steps of 0..255."""
    bilateral_compat: NonNegative = 10.0
    """Weight of the appearance kernel."""

    def settings(self) -> CrfSettings | None:
        """What the runtime takes; None where the CRF is off."""
        return CrfSettings(**self.model_dump()) if self.iterations else None


NO_CRF = CrfSection(iterations=0)


class SeedsSection(Section):
    """Confident foreground and background; what lies between is ignored."""

    rule: Literal["power", "constant"] = "power"
    """power: background (1 - max CAM) ** alpha; constant: a plane of one value."""
    foreground: Positive = 4.0
    """alpha_low (power) or threshold (constant) of the confident foreground labelling."""
    background: Positive = 32.0
    """alpha_high (power) or threshold (constant) of the confident background labelling."""
    unary: Literal["scores", "labels"] = "scores"
    """What the dense CRF starts from: the score maps, or their argmax with `certainty`."""
    certainty: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Probability of the given label, where the unary comes from labels."""
    crf: CrfSection = CrfSection()

    @model_validator(mode="after")
    def _background_is_stricter(self) -> "SeedsSection":
        if self.rule == "power" and self.foreground > self.background:
            raise ValueError(
                f"`foreground` is {self.foreground:g}, must be at most `background` "
                f"({self.background:g}) under the power rule"
            )
        if self.rule == "constant" and not self.background <= self.foreground <= 1:
            raise ValueError(
                f"`background` is {self.background:g} and `foreground` {self.foreground:g}, "
                "must satisfy background <= foreground <= 1 under the constant rule"
            )
        return self


class WalkSection(Section):
    """Random walk on the CAMs and the pseudo labels made from it."""

    beta: Annotated[float, Field(ge=1, le=256)] = 8.0
    """Exponent of affinities; larger keeps the walk closer to home."""
    steps: Annotated[int, Field(ge=0, le=65536)] = 256
    """Steps of the walk; the published code squares the matrix 8 times."""
    radius: Annotated[int, Field(ge=2, le=16)] = 5
    """Partners lie less than this many grid cells apart."""
    borders: Literal["reference", "full"] = "reference"
    """Which pairs take part, as in the affinity section."""
    tolerance: Annotated[float, Field(gt=0, le=0.1)] = 1e-4
    """Largest error of a walked score against the exact walk."""
    background: Literal["power", "constant"] = "power"
    """power: (1 - max CAM) ** alpha walks along; constant: competes after the walk."""
    alpha: Positive = 16.0
    """Exponent of the power rule."""
    threshold: Fraction = 0.25
    """Background constant after the walk, each image's walked scores divided by their maximum."""
    scales: Scales = (1.0,)
    """Image scales whose features are averaged before affinities are taken."""
    crf: CrfSection = NO_CRF
    """Dense CRF on the walked scores before they become labels."""


class SegmenterSection(Section):
    """The network that is trained on the pseudo labels."""

    train: TrainSettings
    head: Literal["largefov", "resnet38", "linear", "dilated"] = "largefov"
    """DeepLab-LargeFOV, the two dilated layers of the ResNet38 segmenter, one 1x1 layer, or one 3x3
    layer of dilation 12."""
    output_stride: BackboneStride | None = None
    """Backbone stride of this stage; default: that of the backbone section."""
    start: Literal["weights", "classifier"] = "weights"
    """Backbone (and class planes of a linear head) start from weights or the trained classifier."""
    balance: Fraction = 0.0
    """How far the loss evens out labels of a batch: 0 all pixels weigh alike, as published; 1 all
    labels weigh alike, however few their pixels; between them pixels weigh count ** -balance."""
    label_stride: Annotated[int, Field(ge=1, le=32)] = 8
    """Pixels per cell at which logits meet labels in the loss."""
    scales: Scales = (1.0,)
    """Test scales; logits are averaged."""
    flip: bool = True
    """Average with the logits of the mirrored image."""
    crf: CrfSection = NO_CRF
    """Dense CRF on the test-time scores."""
