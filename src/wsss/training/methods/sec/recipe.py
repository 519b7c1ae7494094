"""The losses of SEC, and the segmenters that may learn by them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...recipe.recipe import Recipe
from ...recipe.sections import CrfSection, NonNegative, Section, SegmenterSection


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


class PlainSegmenterSection(SegmenterSection):
    """A segmenter without a loss of its own; it learns label maps by one of two."""

    loss: Literal["cross_entropy", "sec"] = "cross_entropy"
    """cross_entropy: of every labelled pixel; sec: see the section below, and let crops show whole
    images, as it asks for every class of an image in every crop."""
    sec: SecSection = SecSection()
    """Used under loss = sec."""

    @model_validator(mode="after")
    def _loss_is_possible(self) -> "PlainSegmenterSection":
        if self.loss == "sec" and self.balance:
            raise ValueError(
                f"`balance` is {self.balance:g}, but `loss` is 'sec', which weighs pixels in its "
                "own way: set `balance` to 0"
            )
        return self


class SecSegmenterSection(PlainSegmenterSection):
    """The network that is trained on the seeds, with the losses of SEC."""

    loss: Literal["cross_entropy", "sec"] = "sec"
    """cross_entropy: the baseline, which learns the seeds alone; sec: see the section below."""


class SecRecipe(Recipe):
    """A whole SEC run."""

    method: Literal["sec"]
    segmenter: SecSegmenterSection
