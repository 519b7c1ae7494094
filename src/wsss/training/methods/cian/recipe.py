"""What only CIAN has (Fan and others, AAAI 2020, and its released code)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...recipe.recipe import Recipe
from ...recipe.sections import NonNegative, Section, SegmenterSection, TrainSettings


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
    """Weight of the losses against what the cross branch says; `balance` is not for these."""

    @model_validator(mode="after")
    def _groups_are_whole(self) -> "CianRoundSection":
        if self.train.batch_size % self.group_size:
            raise ValueError(
                f"`train.batch_size` is {self.train.batch_size}, must be a multiple of "
                f"`group_size` ({self.group_size})"
            )
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


class CianRecipe(Recipe):
    """A whole CIAN run."""

    method: Literal["cian"]
    cian: CianSection
    labels: CianLabelsSection = CianLabelsSection()
    segmenter: CianSegmenterSection
