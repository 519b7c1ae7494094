"""How instances are made; no framework is needed to say it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import ConfigError

Fragments = Literal["keep", "drop"]


Sizes = Sequence[tuple[int, int]]
"""(height, width) in grid cells of each image of a padded batch."""
ROUND_TRIP = 12
"""Steps between two looks at what rests. In floating point a cell ends at a point or in a short
cycle; one whose length divides 12 is at the same place after any number of whole round trips."""


@dataclass(frozen=True)
class InstanceSettings:
    """Settings after the networks and beside those of the walk; defaults as published.

    Raises:
        ConfigError: values out of range; all faults at once.
    """

    steps: int = 300
    """Steps along the displacement field, >= 0."""
    centroid_radius: float = 2.5
    """Cells with a shorter displacement may hold centroids; grid cells, > 0."""
    threshold: float = 0.25
    """Background constant in [0, 1]; walked scores compete with it divided by their maximum."""
    min_area: float = 0.01
    """Share of the image, in [0, 1], below which a segment is a fragment."""
    fragments: Fragments = "keep"
    """keep: a fragment is an instance with score 0, as published; drop: it becomes background."""

    def __post_init__(self) -> None:
        # Written so that NaN fails too.
        checks = {
            f"`steps` is {self.steps}, must be at least 0": self.steps >= 0,
            f"`centroid_radius` is {self.centroid_radius}, must be above 0": self.centroid_radius
            > 0,
            f"`threshold` is {self.threshold}, must be in [0, 1]": 0 <= self.threshold <= 1,
            f"`min_area` is {self.min_area}, must be in [0, 1]": 0 <= self.min_area <= 1,
            f"`fragments` is '{self.fragments}', must be keep or drop": self.fragments
            in get_args(Fragments),
        }
        faults = [message for message, holds in checks.items() if not holds]
        if faults:
            raise ConfigError("; ".join(faults))
