"""Affinities of an image, as what IRNet's boundaries leave of the paths between cells."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....runtime.refine.boundary_affinity import STRIDE, boundary_affinities
from ....runtime.refine.pseudo_labels import WalkSettings
from ..contract import Affinities, AffinitySource
from .network import IRNet, image_boundary, image_maps
from .recipe import IRNetRecipe


def walk_settings(recipe: IRNetRecipe) -> WalkSettings:
    """The recipe's walk as the runtime takes it."""
    on_grid = recipe.cam.map_stride == STRIDE
    return WalkSettings.of_section(recipe.walk.model_dump(), recipe.cam.align, maps_on_grid=on_grid)


def affinities(
    network: IRNet, image: NDArray[np.uint8], recipe: IRNetRecipe, device: torch.device
) -> Affinities:
    """Affinities of an image, and 1 minus its boundaries if they damp its CAMs."""
    boundary = image_boundary(network, image, align=recipe.cam.align, device=device)
    return boundary_affinities(boundary, walk_settings(recipe))


def maps(
    network: IRNet, image: NDArray[np.uint8], recipe: IRNetRecipe, device: torch.device
) -> dict[str, Tensor]:
    """What the exported graph gives: `boundary` and, if it is learnt, `displacement`."""
    boundary, displacement = image_maps(network, image, align=recipe.cam.align, device=device)
    found = {"boundary": boundary}
    return found if displacement is None else found | {"displacement": displacement}


SOURCE = AffinitySource("boundary", "irnet", maps, affinities, walk_settings)
