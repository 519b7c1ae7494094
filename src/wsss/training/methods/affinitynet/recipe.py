"""What only AffinityNet has (Ahn and Kwak, CVPR 2018, and its released code)."""

from typing import Annotated, Literal

from pydantic import Field

from ...recipe.recipe import WalkRecipe
from ...recipe.sections import BackboneStride, Section, TrainSettings
from ..sec.recipe import PlainSegmenterSection


class AffinitySection(Section):
    """AffinityNet training on pairs of grid cells."""

    train: TrainSettings
    radius: Annotated[int, Field(ge=2, le=16)] = 5
    """Pairs lie less than this many grid cells apart."""
    output_stride: BackboneStride | None = None
    """Backbone stride of this stage; default: that of the backbone section."""
    borders: Literal["reference", "full"] = "reference"
    """reference: cells near three borders have no pairs of their own, as in the code."""
    start: Literal["weights", "classifier"] = "weights"
    """Backbone starts from the foreign weights or from the trained classifier."""


class AffinityNetRecipe(WalkRecipe):
    """A whole AffinityNet run."""

    method: Literal["affinitynet"]
    segmenter: PlainSegmenterSection
    affinity: AffinitySection
