"""What boundaries make of the walk: affinities along paths, and damping before it.

Source: IRNet (Ahn, Cho, Kwak, CVPR 2019), its released inference code.
"""

from torch import Tensor

from .boundary_affinity import affinity_from_boundary
from .pseudo_labels import WalkSettings

STRIDE = 4
"""Pixels per cell of the grid of boundaries, on every backbone."""


def boundary_affinities(boundary: Tensor, settings: WalkSettings) -> tuple[Tensor, Tensor | None]:
    """Affinity and damping as `walk_planes` takes them.

    Args:
        boundary: (1, 1, h, w) floating in [0, 1]; computed in float32.
        settings: beta, radius, borders and damping are used.

    Returns:
        (1, K, h, w), the exponent applied, and (1, 1, h, w), 1 minus the boundary, or None.
    """
    boundary = boundary.float()
    affinity = affinity_from_boundary(
        boundary, radius=settings.radius, beta=settings.beta, borders=settings.borders
    )
    return affinity, 1 - boundary if settings.damping else None
