"""What the graphs of a bundle say for instances, which torch groups outside of them."""

from collections.abc import Mapping

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


def maps_of(
    bundle: Bundle,
    fields: Mapping[str, NDArray[np.float32]],
    classes: tuple[int, ...],
    size: tuple[int, int],
) -> InstanceMaps:
    """What the instances of one image are made from.

    Args:
        fields: `cam` (C, h, w), `boundary` (1, h, w) and `displacement` (2, h, w), as the graphs
            give them.
        classes: in the image.
        size: (height, width) of the image.

    Raises:
        ArtifactError: the bundle has no usable settings of instances.
    """
    walk, settings = _settings(bundle)
    indices = np.asarray(classes, np.int64)
    maps = ScoreMaps(indices, fields["cam"][indices], size)
    boundary, displacement = (torch.from_numpy(fields[key]) for key in ("boundary", "displacement"))
    return InstanceMaps(maps, boundary, displacement, walk, settings)


def _settings(bundle: Bundle) -> tuple[WalkSettings, InstanceSettings]:
    try:
        instances = InstanceSettings(**bundle.settings["instances"])
        on_grid = bundle.settings["cam"]["map_stride"] == STRIDE
        walk = WalkSettings.of_section(bundle.settings["walk"], bundle.align, maps_on_grid=on_grid)
        return walk, instances
    except (AttributeError, KeyError, TypeError, WsssError) as error:
        raise ArtifactError(
            f"bundle '{bundle.folder}' has no usable settings of instances ({error}): export it "
            "again"
        ) from None
