"""Sections that recipes of several methods share, and the ranges of their keys."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ...runtime.refine.dense_crf import CrfSettings
from ..backbones.build import BACKBONES, output_strides


@dataclass(frozen=True)
class OneOf:
    """A validator of values that a registry lists when a recipe is read.

    Attributes:
        choices: returns the values, in the order in which messages and documentation name them.
    """

    choices: Callable[[], Iterable[str | int]]

    def __call__(self, value: str | int) -> str | int:
        """The value itself if it is listed."""
        known = list(self.choices())
        if value not in known:
            raise PydanticCustomError("one_of", "Input should be {known}", {"known": either(known)})
        return value


def either(choices: Iterable[str | int]) -> str:
    """Choices as text: 8, 16 or 32."""
    *others, last = [repr(choice) for choice in choices]
    return f"{', '.join(others)} or {last}" if others else last


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
BackboneName = Annotated[str, AfterValidator(OneOf(lambda: BACKBONES))]
BackboneStride = Annotated[int, AfterValidator(OneOf(output_strides))]
"""A stride of any backbone; `recipes` checks that it is one of the recipe's own."""
Scales = Annotated[tuple[Annotated[float, Field(ge=0.1, le=4)], ...], Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys are faults, values never change after loading."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Augmentation(Section):
    """Random changes of one training image; the order is resize, flip, jitter, crop."""

    crop_size: Annotated[int, Field(ge=32, le=2048)] = 448
    """Side of the square crop in pixels; smaller images are padded with the mean colour."""
    long_side: tuple[int, int] | None = None
    """Longer side drawn uniformly from this range in pixels."""
    scale: tuple[Positive, Positive] | None = None
    """Or: the image is scaled by a factor drawn uniformly from this range."""
    flip: bool = True
    """Mirror every second image."""
    jitter: tuple[Fraction, Fraction, Fraction, Annotated[float, Field(ge=0, le=0.5)]] = (
        0.3,
        0.3,
        0.3,
        0.1,
    )
    """Strength of brightness, contrast, saturation and hue changes."""

    @model_validator(mode="after")
    def _ranges_make_sense(self) -> "Augmentation":
        if self.long_side and self.scale:
            raise ValueError("`long_side` and `scale` exclude each other")
        for name in ("long_side", "scale"):
            bounds = getattr(self, name)
            if bounds and bounds[0] > bounds[1]:
                raise ValueError(f"`{name}` is {list(bounds)}, must go from small to large")
        return self


class TrainSettings(Section):
    """One training: schedule, optimiser and augmentation."""

    epochs: Count
    """Passes over the training list; the last incomplete batch of each is dropped."""
    batch_size: Count
    """Images of one optimiser step, over all processes together."""
    learning_rate: Positive
    """Of pretrained weights; new layers, and biases by `biases`, get multiples of it."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """0 by default: the released code passes its momentum by position and so uses none."""
    weight_decay: NonNegative = 5e-4
    """Of weights; of biases see `biases`."""
    new_layer_factor: Positive = 10.0
    """Learning rate of new layers as a multiple of `learning_rate`."""
    biases: Literal["doubled", "alike", "undecayed"] = "doubled"
    """doubled: they learn at twice the rate of weights and do not decay, as in AffinityNet's code;
    alike: as weights, as in IRNet's; undecayed: at their rate, as in CIAN's."""
    poly_power: Positive = 0.9
    """Rates shrink by (1 - step / steps) ** poly_power."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd as published, or adamw."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast on a GPU, float32 on a CPU."""
    frozen: tuple[str, ...] | None = None
    """Name prefixes of backbone layers that do not learn; default: those of the paper."""
    augmentation: Augmentation = Augmentation()

    def schedule_step(self, step: int, steps_per_epoch: int) -> int:
        """The step, counted from 0, that the learning rate of a step is taken from."""
        return step

    def epochs_of(self, is_new: bool) -> int:
        """Epochs in which the rate of pretrained or of new layers falls to 0, where it stays."""
        return self.epochs


class HeadWarmup(Section):
    """Train the classification head alone on frozen features before the network as a whole.

    On a few hundred images this decides whether fine-tuning works at all.
    """

    epochs: Annotated[int, Field(ge=0)] = 0
    """Full-batch steps; 0 leaves the warm-up out."""
    learning_rate: Positive = 1e-3
    """Of AdamW."""
    weight_decay: NonNegative = 1e-4
    """Of AdamW."""
    image_sizes: tuple[Annotated[int, Field(ge=32, le=1024)], ...] = (321,)
    """Features are computed once for every image and its mirror, resized to these squares."""


class DataSection(Section):
    """Which lists of the image set are used."""

    train_split: str = "train"
    """List that every stage learns from and that gets pseudo labels."""
    val_split: str = "val"
    """List that measures the classifier and the segmenter; never learnt from."""
    figures_split: str = "train"
    """List on which CAMs, seeds and pseudo labels are measured, where it has masks; the training
    list where the image set has no such list."""


class BackboneSection(Section):
    """The network that all stages start from."""

    name: BackboneName
    """Architecture; `small` is for training from scratch on small images."""
    output_stride: BackboneStride = 8
    """Pixels per cell of the last feature map; each backbone has some of these strides."""
    from_scratch: bool = False
    """Start from random weights, which `small` can; otherwise pretrained weights are required."""

    @model_validator(mode="after")
    def _scratch_is_possible(self) -> "BackboneSection":
        if self.from_scratch and not BACKBONES[self.name].from_scratch:
            able = " or ".join(f"`{name}`" for name, kind in BACKBONES.items() if kind.from_scratch)
            raise ValueError(
                f"`from_scratch` is true, but `{self.name}` keeps layers of its ImageNet weights "
                f"frozen: give `weights_path`, or take the backbone {able}"
            )
        return self


class CamSection(Section):
    """Classifier training and multi-scale class activation maps."""

    warmup: HeadWarmup = HeadWarmup()
    train: TrainSettings
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of feature channels that a training step hides from the head."""
    skip_training: bool = False
    """Keep the classifier as the warm-up left it."""
    scales: Scales = (1.0, 0.5, 1.5, 2.0)
    """Image scales whose maps are summed."""
    flip: bool = True
    """Add the maps of the mirrored image at every scale."""
    map_stride: Annotated[int, Field(ge=1, le=32)] = 4
    """Pixels per cell of the stored maps."""
    align: Literal["reference", "corners"] = "reference"
    """How grid cells lie on pixels: stretched as in the released code, or cell i at pixel
    i * stride, which is where zero-padded convolutions put it."""
    threshold: Fraction = 0.2
    """Background constant used when CAMs alone are measured or drawn."""


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
