"""Instances by the graphs of an IRNet bundle: they are grouped outside of the graphs, by torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ArtifactError, WsssError
from .bundle import Bundle
from .instances.grouping import group_instances
from .instances.instance_map import InstanceMap
from .instances.settings import InstanceSettings
from .pseudo_labels import WalkSettings
from .score_maps import ScoreMaps

_WALK = ("beta", "steps", "radius", "borders", "tolerance", "background", "alpha", "threshold")


def group(
    bundle: Bundle,
    cam: NDArray[np.float32],
    irnet: Mapping[str, NDArray[np.float32]],
    classes: tuple[int, ...],
    size: tuple[int, int],
) -> InstanceMap:
    """Instances of one image, of its size.

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
    return group_instances(maps, boundary, displacement, walk, settings)


def _settings(bundle: Bundle) -> tuple[WalkSettings, InstanceSettings]:
    try:
        walk: dict[str, Any] = {key: bundle.settings["walk"][key] for key in _WALK}
        instances = InstanceSettings(**bundle.settings["instances"])
        damping = bundle.settings["walk"].get("damping", True)
        return WalkSettings(**walk, align=bundle.align, damping=damping), instances
    except (KeyError, TypeError, WsssError) as error:
        raise ArtifactError(
            f"bundle '{bundle.folder}' has no usable settings of instances ({error}): export it "
            "again"
        ) from None
