"""Sections of recipes: every hyper-parameter of every stage, with its range and default.

Defaults are the published settings of AffinityNet (Ahn and Kwak, CVPR 2018, and its released code);
sections of IRNet (Ahn, Cho, Kwak, CVPR 2019, likewise) and CIAN (Fan et al., AAAI 2020, likewise)
have those of their own.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..runtime.dense_crf import CrfSettings

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Scales = Annotated[tuple[Annotated[float, Field(ge=0.1, le=4)], ...], Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys are faults, values never change after loading."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
    added: ClassVar[Mapping[str, object]] = {}
    """Keys that came after runs had been made without them, and the value at which a stage is what
    it was, so that those runs stay up to date."""


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


class BackboneSection(Section):
    """The network that all stages start from."""

    name: Literal["resnet38", "vgg16", "resnet50", "resnet101", "mobilenetv2", "small"]
    """Architecture; `small` is for training from scratch on small images."""
    output_stride: Literal[8, 16, 32] = 8
    """Pixels per cell of the last feature map."""
    from_scratch: bool = False
    """Start from random weights (`small` only); otherwise `--weights` is required."""

    @model_validator(mode="after")
    def _scratch_is_possible(self) -> "BackboneSection":
        if self.from_scratch and self.name != "small":
            raise ValueError(
                f"`from_scratch` is true, but `{self.name}` keeps layers of its ImageNet weights "
                "frozen: give --weights, or take the backbone `small`"
            )
        return self


class DataSection(Section):
    """Which lists of the image set are used."""

    train_split: str = "train"
    """List that every stage learns from and that gets pseudo labels."""
    val_split: str = "val"
    """List that measures the classifier and the segmenter; never learnt from."""
    figures_split: str = "train"
    """List on which CAMs, seeds and pseudo labels are measured, where it has masks."""


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
    map_stride: Literal[1, 4, 8] = 4
    """Pixels per cell of the stored maps."""
    align: Literal["reference", "corners"] = "reference"
    """How grid cells lie on pixels: stretched as in the released code, or cell i at pixel
    i * stride, which is where zero-padded convolutions put it."""
    threshold: Fraction = 0.2
    """Background constant used when CAMs alone are measured or drawn."""


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


class AffinitySection(Section):
    """AffinityNet training on pairs of grid cells."""

    train: TrainSettings
    radius: Annotated[int, Field(ge=2, le=16)] = 5
    """Pairs lie less than this many grid cells apart."""
    output_stride: Literal[8, 16, 32] | None = None
    """Backbone stride of this stage; default: that of the backbone section."""
    borders: Literal["reference", "full"] = "reference"
    """reference: cells near three borders have no pairs of their own, as in the code."""
    start: Literal["weights", "classifier"] = "weights"
    """Backbone starts from the foreign weights or from the trained classifier."""


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


class IRNetTrainSettings(TrainSettings):
    """The training of IRNet's two branches."""

    weight_decay: NonNegative = 1e-4
    biases: Literal["doubled", "alike"] = "alike"
    boundary_epochs: Count | None = None
    """Epochs in which boundaries learn; displacements go on. Default: all, as published. From few
    images boundaries learn the faults of the seeds while displacements are still far off."""

    def epochs_of(self, is_new: bool) -> int:
        """See `TrainSettings`; boundaries count as pretrained, displacements as new."""
        return self.epochs if is_new or self.boundary_epochs is None else self.boundary_epochs

    @model_validator(mode="after")
    def _boundaries_end_first(self) -> "IRNetTrainSettings":
        if self.boundary_epochs is not None and self.boundary_epochs > self.epochs:
            raise ValueError(
                f"`boundary_epochs` is {self.boundary_epochs}, must be at most `epochs` "
                f"({self.epochs})"
            )
        return self


class IRNetSection(Section):
    """IRNet training on pairs of grid cells; its backbone is frozen as a whole."""

    train: IRNetTrainSettings
    """`learning_rate` is that of boundaries; displacements get `new_layer_factor` times it."""
    radius: Annotated[int, Field(ge=2, le=16)] = 10
    """Pairs lie less than this many grid cells of 4 pixels apart."""
    output_stride: Literal[8, 16, 32] | None = None
    """Backbone stride of this stage; default: that of the backbone section."""
    borders: Literal["reference", "full"] = "reference"
    """reference: cells near three borders have no pairs of their own, as in the code."""
    start: Literal["weights", "classifier"] = "weights"
    """Backbone from the foreign weights or from the trained classifier."""
    displacement: bool = True
    """Learn displacements too; without them there are no instances, and half the work."""
    canvas: Annotated[int, Field(ge=0, le=2048)] = 512
    """Side of the square of zeros on which images lie when the mean displacement is taken, in
    pixels; 0: the image alone."""

    @model_validator(mode="after")
    def _backbone_is_frozen(self) -> "IRNetSection":
        if self.train.frozen is not None:
            raise ValueError("`train.frozen` is given, but the backbone is frozen as a whole")
        return self


class IRNetSeedsSection(SeedsSection):
    """Confident foreground and background by two constants and a CRF on labels."""

    rule: Literal["power", "constant"] = "constant"
    foreground: Positive = 0.3
    background: Positive = 0.05
    unary: Literal["scores", "labels"] = "labels"
    crf: CrfSection = CrfSection(bilateral_sxy=50.0, bilateral_srgb=5.0)


class IRNetWalkSection(WalkSection):
    """Random walk that boundaries stop; CAMs are damped on them before it."""

    beta: Annotated[float, Field(ge=1, le=256)] = 10.0
    borders: Literal["reference", "full"] = "full"
    background: Literal["power", "constant"] = "constant"
    damping: bool = True
    """Multiply CAMs by 1 - boundary before the walk, as published; hurts where boundaries are wide,
    as those learnt from a few hundred images are."""

    @model_validator(mode="after")
    def _is_irnets(self) -> "IRNetWalkSection":
        if self.background != "constant" or self.scales != (1.0,):
            raise ValueError(
                "`background` and `scales` are fixed for IRNet: leave them out, or set "
                "background='constant', scales=[1.0]"
            )
        return self


class InstancesSection(Section):
    """Grouping of cells into objects."""

    steps: Annotated[int, Field(ge=0, le=1000)] = 300
    """Times that each cell's centre moves on by the displacement found there."""
    centroid_radius: Positive = 2.5
    """Cells whose displacement is shorter are the middle of an object, in grid cells."""
    threshold: Fraction = 0.25
    """Background constant, each image's walked scores divided by their maximum."""
    min_area: Fraction = 0.01
    """Share of the image below which a piece is a fragment."""
    fragments: Literal["keep", "drop"] = "keep"
    """keep: a fragment is an instance with a score of 0, as published; drop: it is background."""


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
    labels weigh alike, however few their pixels; between them pixels weigh count ** -balance. Not
    under loss = sec."""
    label_stride: Literal[1, 2, 4, 8, 16] = 8
    """Pixels per cell at which logits meet labels in the loss."""
    scales: Scales = (1.0,)
    """Test scales; logits are averaged."""
    flip: bool = True
    """Average with the logits of the mirrored image."""
    crf: CrfSection = NO_CRF
    """Dense CRF on the test-time scores."""
    loss: Literal["cross_entropy", "sec"] = "cross_entropy"
    """cross_entropy: of every labelled pixel; sec: see the section below, and let crops show whole
    images, as it asks for every class of an image in every crop."""
    sec: SecSection = SecSection()
    """Used under loss = sec."""

    added: ClassVar[Mapping[str, object]] = {"loss": "cross_entropy", "sec": SecSection()}

    @model_validator(mode="after")
    def _loss_is_possible(self) -> "SegmenterSection":
        if self.loss == "sec" and self.balance:
            raise ValueError(
                f"`balance` is {self.balance:g}, but `loss` is 'sec', which weighs pixels in its "
                "own way: set `balance` to 0"
            )
        return self


class CianTrainSettings(TrainSettings):
    """A training of CIAN."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd."""
    biases: Literal["doubled", "alike", "undecayed"] = "undecayed"
    """undecayed: at the rate of weights, without decay, as published; others as elsewhere."""
    poly: Literal["step", "epoch"] = "epoch"
    """Rates shrink with every step, or with every epoch as published."""

    def schedule_step(self, step: int, steps_per_epoch: int) -> int:
        """See `TrainSettings`."""
        return step - step % steps_per_epoch if self.poly == "epoch" else step


class CianRoundSection(SegmenterSection):
    """What both rounds of CIAN have."""

    train: CianTrainSettings
    head: Literal["cian"] = "cian"  # type: ignore[assignment]
    """Affinity module and one 3x3 layer, the same in both rounds."""
    group_size: Annotated[int, Field(ge=2, le=16)] = 2
    """Images that share a class and look at each other; divides the batch."""
    cross_affinity: bool = True
    """Learn the cross branch; without it an image sees itself alone and nothing is completed."""
    completion: NonNegative = 1.0
    """Weight of the losses against what the cross branch says."""

    @model_validator(mode="after")
    def _groups_are_whole(self) -> "CianRoundSection":
        if self.train.batch_size % self.group_size:
            raise ValueError(
                f"`train.batch_size` is {self.train.batch_size}, must be a multiple of "
                f"`group_size` ({self.group_size})"
            )
        return self

    @model_validator(mode="after")
    def _loss_is_possible(self) -> "CianRoundSection":
        if self.loss != "cross_entropy":
            raise ValueError(f"`loss` is {self.loss!r}, but CIAN has its own: leave it out")
        return self


class CianSection(CianRoundSection):
    """First round of CIAN: a segmenter that is trained on the seeds.

    Scales, mirror and CRF are those by which it is measured and by which the labels of the second
    round are made.
    """

    channels: Annotated[int, Field(ge=1, le=4096)] = 1024
    """Of queries, keys and values."""
    self_affinity: bool = True
    """Images look at themselves too; without it the self branch is a plain segmenter."""


class CianLabelsSection(Section):
    """Labels that the first round gives to the training images."""

    present_only: bool = False
    """Only classes in the image compete; off as published, where image labels are not looked at."""


class CianSegmenterSection(CianRoundSection):
    """Second round of CIAN: goes on from the first, on its labels."""

    start: Literal["cian"] = "cian"  # type: ignore[assignment]
    """Always the network of the first round."""


class SecSegmenterSection(SegmenterSection):
    """The network that is trained on the seeds, with the losses of SEC."""

    loss: Literal["cross_entropy", "sec"] = "sec"


class SelfGuidedSeedsSection(SeedsSection):
    """The labels that the network makes for itself, from its refined maps."""

    rule: Literal["power", "constant"] = "constant"
    foreground: Positive = 0.3
    background: Positive = 0.05
    unary: Literal["scores", "labels"] = "labels"
    crf: CrfSection = NO_CRF


class SelfGuidedSegmenterSection(SegmenterSection):
    """The network with two heads, which learns the labels that it makes."""

    head: Literal["largefov", "resnet38", "linear", "dilated"] = "dilated"
    start: Literal["weights", "classifier"] = "classifier"

    @model_validator(mode="after")
    def _loss_is_possible(self) -> "SelfGuidedSegmenterSection":
        if self.loss != "cross_entropy":
            raise ValueError(
                f"`loss` is {self.loss!r}, but the self-guided network has its own: leave it out"
            )
        if self.start != "classifier":
            raise ValueError(
                "`start` is 'weights', but the first labels come of the classifier: leave it out"
            )
        return self


class SelfGuidedSection(Section):
    """How the self-guided network refines its maps and makes labels of them. Our design after the
    paper's abstract; nothing more of the paper was at hand."""

    scales: Scales = (1.0,)
    """Image scales whose activation maps are summed (step 1)."""
    flip: bool = True
    """Add the maps of the mirrored image (step 1)."""
    affinity: bool = True
    """Step 2: maps walk to neighbours that are alike in intermediate features."""
    radius: Annotated[int, Field(ge=2, le=16)] = 5
    """Partners lie less than this many cells apart."""
    beta: Annotated[float, Field(ge=1, le=256)] = 8.0
    """Exponent of affinities; larger keeps the walk closer to home."""
    steps: Annotated[int, Field(ge=0, le=4096)] = 8
    """Steps of the walk."""
    guided: bool = True
    """Step 3: a guided filter carries the structure of the image into the maps."""
    guide_radius: Annotated[int, Field(ge=1, le=64)] = 8
    """Of the filter, in pixels of the image at half size."""
    guide_eps: Positive = 1e-3
    """Variance of the guide, colours in [0, 1], below which the filter smooths."""
    affinity_weight: NonNegative = 0.1
    """Weight of the loss that pulls maps towards what step 2 makes of them; 0 leaves it out."""
    alternate: bool = True
    """Make labels anew before each epoch; else once, by the network that the stage starts from."""
    threshold: Fraction = 0.3
    """Background constant of the final labels, and at which the maps of each step are measured."""
