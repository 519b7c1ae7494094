"""How a network is trained: the part that the sections of all trained stages share."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Count, Fraction, NonNegative, Positive, Section


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
