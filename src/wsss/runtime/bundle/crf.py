"""The dense CRF behind a bundle's graphs: the one part of labelling that still needs torch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, MissingDependencyError
from ..io.score_maps import ScoreMaps
from ..predictor import Prediction
from .open import Bundle

try:
    import torch

    from ..refine.dense_crf import CrfSettings, DenseCrf, unary_from_scores
    from ..refine.pseudo_labels import label_from_scores
except ImportError:
    raise MissingDependencyError(
        "the dense CRF needs torch: pip install 'wsss[train]', or label without it, as mode walk "
        "does"
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
