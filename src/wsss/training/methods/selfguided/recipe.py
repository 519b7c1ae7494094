"""What only the self-guided network has: our design after an abstract, see `method.py`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...recipe.recipe import Recipe
from ...recipe.sections import (
    NO_CRF,
    CrfSection,
    Fraction,
    NonNegative,
    Positive,
    Scales,
    Section,
    SeedsSection,
    SegmenterSection,
)


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
    def _starts_from_the_classifier(self) -> "SelfGuidedSegmenterSection":
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


class SelfGuidedRecipe(Recipe):
    """A whole run of the self-guided network."""

    method: Literal["selfguided"]
    seeds: SelfGuidedSeedsSection = SelfGuidedSeedsSection()
    segmenter: SelfGuidedSegmenterSection
    selfguided: SelfGuidedSection = SelfGuidedSection()
