"""The network that all stages start from."""

from typing import Literal

from pydantic import model_validator

from .base import Section


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
