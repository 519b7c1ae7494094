"""Dense CRF, wherever a stage has one."""

from typing import Annotated

from pydantic import Field

from ...runtime.dense_crf import CrfSettings
from .base import NonNegative, Positive, Section


class CrfSection(Section):
    """Dense CRF with a smoothness and an appearance kernel."""

    iterations: Annotated[int, Field(ge=0, le=100)] = 10
    """0 switches the CRF off."""
    gaussian_sxy: Positive = 3.0
    """Reach of the smoothness kernel in pixels."""
    gaussian_compat: NonNegative = 3.0
    """Weight of the smoothness kernel."""
    bilateral_sxy: Positive = 80.0
    """Reach of the appearance kernel in pixels."""
    bilateral_srgb: Positive = 13.0
    """Reach of the appearance kernel in colour steps of 0..255."""
    bilateral_compat: NonNegative = 10.0
    """Weight of the appearance kernel."""

    def settings(self) -> CrfSettings | None:
        """What the runtime takes; None where the CRF is off."""
        return CrfSettings(**self.model_dump()) if self.iterations else None


NO_CRF = CrfSection(iterations=0)
