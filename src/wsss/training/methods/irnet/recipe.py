"""What only IRNet has (Ahn, Cho and Kwak, CVPR 2019, and its released code)."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ...recipe.recipe import WalkRecipe, value_at
from ...recipe.sections import (
    BackboneStride,
    Count,
    CrfSection,
    Fraction,
    NonNegative,
    Positive,
    Section,
    SeedsSection,
    TrainSettings,
    WalkSection,
)
from ..sec.recipe import PlainSegmenterSection


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
    output_stride: BackboneStride | None = None
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


class IRNetRecipe(WalkRecipe):
    """A whole IRNet run."""

    method: Literal["irnet"]
    seeds: IRNetSeedsSection = IRNetSeedsSection()
    segmenter: PlainSegmenterSection
    irnet: IRNetSection
    walk: IRNetWalkSection = IRNetWalkSection()
    instances: InstancesSection = InstancesSection()

    @classmethod
    def faults(cls, values: Mapping[str, Any]) -> Iterable[str]:
        """A frozen backbone that nothing has trained; see `Recipe`."""
        start = value_at(values, "irnet", "start") or "weights"
        if value_at(values, "backbone", "from_scratch") is True and start == "weights":
            yield (
                "irnet.start is 'weights', but the backbone starts from scratch and IRNet does not "
                "train it: set irnet.start=classifier"
            )
