"""The first labels, made of activation maps."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Positive, Section
from .crf import CrfSection


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
