"""What the graphs of an IRNet bundle say for instances, which torch groups outside of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import ArtifactError, WsssError
from ..instances.maps import InstanceMaps
from ..instances.settings import InstanceSettings
from ..io.score_maps import ScoreMaps
from ..refine.boundary_affinity import STRIDE
from ..refine.pseudo_labels import WalkSettings
from .open import Bundle

_WALK = ("beta", "steps", "radius", "borders", "tolerance", "background", "alpha", "threshold")


def maps_of(
    bundle: Bundle,
    cam: NDArray[np.float32],
    irnet: Mapping[str, NDArray[np.float32]],
    classes: tuple[int, ...],
    size: tuple[int, int],
) -> InstanceMaps:
    """What the instances of one image are made from.

    Args:
        cam: (C, h, w) of the graph `cam`.
        irnet: `boundary` (1, h, w) and `displacement` (2, h, w) of the graph `irnet`.
        classes: in the image.
        size: (height, width) of the image.

    Raises:
        ArtifactError: the bundle has no usable settings of instances.
    """
    walk, settings = _settings(bundle)
    indices = np.asarray(classes, np.int64)
    maps = ScoreMaps(indices, cam[indices], size)
    boundary, displacement = (torch.from_numpy(irnet[key]) for key in ("boundary", "displacement"))
    return InstanceMaps(maps, boundary, displacement, walk, settings)


def _settings(bundle: Bundle) -> tuple[WalkSettings, InstanceSettings]:
    try:
        walk: dict[str, Any] = {key: bundle.settings["walk"][key] for key in _WALK}
        instances = InstanceSettings(**bundle.settings["instances"])
        damping = bundle.settings["walk"].get("damping", True)
        stride = bundle.settings["cam"]["map_stride"]
        on_grid = stride == STRIDE
        settings = WalkSettings(**walk, align=bundle.align, damping=damping, maps_on_grid=on_grid)
        return settings, instances
    except (KeyError, TypeError, WsssError) as error:
        raise ArtifactError(
            f"bundle '{bundle.folder}' has no usable settings of instances ({error}): export it "
            "again"
        ) from None
