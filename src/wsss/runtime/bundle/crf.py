"""The dense CRF behind a bundle's graphs: the one part of labelling that still needs torch."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import ArtifactError, ConfigError
from ..io.score_maps import ScoreMaps
from ..refine.dense_crf import CrfSettings, DenseCrf, unary_from_scores
from ..refine.pseudo_labels import label_from_scores
from .open import Bundle
from .predictor import BundleKind, Labelled


def refine(
    bundle: Bundle, image: NDArray[np.uint8], found: Labelled, kind: BundleKind
) -> NDArray[np.uint8]:
    """(H, W) uint8 labels after the CRF that the recipe has for this way to label.

    Raises:
        ConfigError: the recipe has none; ArtifactError: its settings are damaged.
    """
    settings = crf_settings(bundle, kind)
    if kind == "segmenter":
        unary = unary_from_scores(torch.from_numpy(found.scores))
        return DenseCrf(image, settings).refine(unary).argmax(0).to(torch.uint8).numpy()
    indices = np.asarray(found.classes, np.int64)
    size = (image.shape[0], image.shape[1])
    maps = ScoreMaps(indices, found.scores[indices + 1], size, found.scores[0])
    return label_from_scores(maps, threshold=0, align=bundle.align, image=image, crf=settings)


def crf_settings(bundle: Bundle, kind: BundleKind) -> CrfSettings:
    """The recipe's dense CRF.

    Raises:
        ConfigError: the recipe has none for this kind; ArtifactError: damaged settings.
    """
    try:
        values: dict[str, Any] = bundle.settings[kind]["crf"]
        settings = CrfSettings(**values)
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"bundle '{bundle.folder}' has no usable settings of a dense CRF ({error}): export it "
            "again"
        ) from None
    if not settings.iterations:
        raise ConfigError(
            f"the recipe '{bundle.name}' has no dense CRF after '{kind}': leave `crf` out, and "
            f"use `mode` {kind}"
        )
    return settings
