"""The classifier and its activation maps."""

from typing import Annotated, Literal

from pydantic import Field

from .base import Fraction, NonNegative, Positive, Scales, Section
from .train import TrainSettings


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
    map_stride: Annotated[int, Field(ge=1, le=32)] = 4
    """Pixels per cell of the stored maps."""
    align: Literal["reference", "corners"] = "reference"
    """How grid cells lie on pixels: stretched as in the released code, or cell i at pixel
    i * stride, which is where zero-padded convolutions put it."""
    threshold: Fraction = 0.2
    """Background constant used when CAMs alone are measured or drawn."""
