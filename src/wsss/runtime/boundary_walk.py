"""The walk that class boundaries hold back: scores damped on boundaries, then propagated.

Source: IRNet (Ahn, Cho, Kwak, CVPR 2019), its released inference code.
"""

from torch import Tensor

from .boundary_affinity import affinity_from_boundary
from .propagation import propagate
from .pseudo_labels import WalkSettings


class BoundaryWalk:
    """The walk of one image, for any number of score planes.

    Args:
        boundary: (1, h, w) floating in [0, 1], on the device that walks; computed in float32.
        settings: beta, steps, radius, borders and tolerance are used.
    """

    def __init__(self, boundary: Tensor, settings: WalkSettings) -> None:
        boundary = boundary.float()
        self._affinity = affinity_from_boundary(
            boundary[None], radius=settings.radius, beta=settings.beta, borders=settings.borders
        )
        self._openness = 1 - boundary
        self._settings = settings

    def __call__(self, planes: Tensor) -> Tensor:
        """(n, h, w) scores >= 0, n may be 0 -> walked, >= 0, not normalised; zeros stay zeros."""
        walked = propagate(
            (planes * self._openness)[None],
            self._affinity,
            radius=self._settings.radius,
            steps=self._settings.steps,
            tolerance=self._settings.tolerance,
        )
        return walked[0].clamp_(min=0)
