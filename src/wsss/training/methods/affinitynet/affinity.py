"""Affinities of an image, as distances of AffinityNet's features."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....runtime.refine.feature_affinity import affinity_from_features
from ..contract import Affinities, AffinitySource
from ..shared.walk_stage import walk_settings
from .network import AffinityNet, image_features
from .recipe import AffinityNetRecipe


def features(
    network: AffinityNet, image: NDArray[np.uint8], recipe: AffinityNetRecipe, device: torch.device
) -> Tensor:
    """(1, C, h, w) features of an image, averaged over the scales of the walk."""
    return image_features(
        network, image, scales=recipe.walk.scales, align=recipe.cam.align, device=device
    )


def affinities(
    network: AffinityNet, image: NDArray[np.uint8], recipe: AffinityNetRecipe, device: torch.device
) -> Affinities:
    """Affinities of an image; nothing damps its CAMs."""
    walk = recipe.walk
    affinity = affinity_from_features(
        features(network, image, recipe, device),
        radius=walk.radius,
        beta=walk.beta,
        borders=walk.borders,
    )
    return affinity, None


def maps(
    network: AffinityNet, image: NDArray[np.uint8], recipe: AffinityNetRecipe, device: torch.device
) -> dict[str, Tensor]:
    """What the exported graph gives."""
    return {"affinity": affinities(network, image, recipe, device)[0]}


SOURCE = AffinitySource("features", "affinity", maps, affinities, walk_settings, features)
