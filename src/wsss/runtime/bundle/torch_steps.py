"""The steps after a bundle's graphs that need torch: the dense CRF, and grouping instances."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, MissingDependencyError, WsssError
from ..instances.settings import InstanceSettings
from ..io.score_maps import ScoreMaps
from ..predictor import Prediction
from .open import Bundle

try:
    import torch

    from ..instances.maps import InstanceMaps
    from ..refine.boundary_affinity import STRIDE
    from ..refine.dense_crf import CrfSettings, DenseCrf, unary_from_scores
    from ..refine.pseudo_labels import WalkSettings, label_from_scores
except ImportError:
    raise MissingDependencyError(
        "the dense CRF and instances need torch: pip install 'wsss[train]', or label without them"
    ) from None


def refine(
    bundle: Bundle, image: NDArray[np.uint8], found: Prediction, section: str, *, on_grid: bool
) -> NDArray[np.uint8]:
    """(H, W) uint8 labels after the CRF of a mode.

    Args:
        section: see `crf_settings`.
        on_grid: whether the scores lie on the grid of the walk, else on the pixels.

    Raises:
        ArtifactError: its settings are damaged.
    """
    settings = crf_settings(bundle, section)
    assert found.scores is not None
    if not on_grid:
        unary = unary_from_scores(torch.from_numpy(found.scores))
        return DenseCrf(image, settings).refine(unary).argmax(0).to(torch.uint8).numpy()
    indices = np.asarray(found.classes or (), np.int64)
    size = (image.shape[0], image.shape[1])
    maps = ScoreMaps(indices, found.scores[indices + 1], size, found.scores[0])
    return label_from_scores(maps, threshold=0, align=bundle.align, image=image, crf=settings)


def crf_settings(bundle: Bundle, section: str) -> CrfSettings:
    """The recipe's dense CRF.

    Args:
        section: of the bundle's settings, see `ModeEntry`.

    Raises:
        ArtifactError: damaged settings.
    """
    try:
        values: dict[str, Any] = bundle.settings[section]["crf"]
        return CrfSettings(**values)
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"bundle '{bundle.folder}' has no usable settings of a dense CRF ({error}): export it "
            "again"
        ) from None


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
    walk, settings = _instance_settings(bundle)
    indices = np.asarray(classes, np.int64)
    maps = ScoreMaps(indices, fields["cam"][indices], size)
    boundary, displacement = (torch.from_numpy(fields[key]) for key in ("boundary", "displacement"))
    return InstanceMaps(maps, boundary, displacement, walk, settings)


def _instance_settings(bundle: Bundle) -> tuple[WalkSettings, InstanceSettings]:
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
