"""The random walk of methods that learn affinities."""

from typing import Annotated, Literal

from pydantic import Field

from .base import Fraction, Positive, Scales, Section
from .crf import NO_CRF, CrfSection


class WalkSection(Section):
    """Random walk on the CAMs and the pseudo labels made from it."""

    beta: Annotated[float, Field(ge=1, le=256)] = 8.0
    """Exponent of affinities; larger keeps the walk closer to home."""
    steps: Annotated[int, Field(ge=0, le=65536)] = 256
    """Steps of the walk; the published code squares the matrix 8 times."""
    radius: Annotated[int, Field(ge=2, le=16)] = 5
    """Partners lie less than this many grid cells apart."""
    borders: Literal["reference", "full"] = "reference"
    """Which pairs take part, as in the affinity section."""
    tolerance: Annotated[float, Field(gt=0, le=0.1)] = 1e-4
    """Largest error of a walked score against the exact walk."""
    background: Literal["power", "constant"] = "power"
    """power: (1 - max CAM) ** alpha walks along; constant: competes after the walk."""
    alpha: Positive = 16.0
    """Exponent of the power rule."""
    threshold: Fraction = 0.25
    """Background constant after the walk, each image's walked scores divided by their maximum."""
    scales: Scales = (1.0,)
    """Image scales whose features are averaged before affinities are taken."""
    crf: CrfSection = NO_CRF
    """Dense CRF on the walked scores before they become labels."""
