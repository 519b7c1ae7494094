"""`wsss bench crf`: the dense CRF against the published package on the same photographs."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import WsssError
from ..runtime.refine.dense_crf import CrfSettings, DenseCrf, unary_from_scores
from ..runtime.refine.seeds import background_score
from ..training.methods import METHODS, open_method
from . import published_operators as published
from .machine import synchroniser
from .stages import median_seconds

PUBLISHED = {
    **{m.name: m.seed_crf for m in map(open_method, METHODS) if m.seed_crf is not None},
    "deeplab_v2": CrfSettings(10, 1, 3, 67, 3, 4),
    "resnet38_largefov": CrfSettings(1, 3, 3, 32, 13, 10),
}
"""Settings of the published systems, by their names."""
LEAST_AGREEMENT = 0.9995
"""Share of pixels that must be labelled alike before a time is told."""
ALPHAS = (4.0, 32.0)
"""Background exponents of the two passes over an image that make AffinityNet's seeds."""


@dataclass(frozen=True)
class CrfCase:
    """One photograph.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        scores: (n, H, W) class scores in [0, 1], as CAMs at full size.
    """

    name: str
    image: NDArray[np.uint8]
    scores: Tensor


@dataclass(frozen=True)
class CrfRow:
    """Two passes over one image.

    Attributes:
        labels: classes and background.
        time_ratio: our seconds over those of the package; None where it is not installed.
        argmax_agreement: share of pixels that both label alike, over both passes.
    """

    image: str
    size: tuple[int, int]
    labels: int
    settings: str
    device: str
    seconds: float
    package_seconds: float | None
    time_ratio: float | None
    argmax_agreement: float | None


def bench_crf(
    case: CrfCase, settings: Sequence[str], *, rounds: int, device: torch.device
) -> Iterator[CrfRow]:
    """Rows as they are measured; the package, which has one thread, is timed in turn with ours."""
    has_package = importlib.util.find_spec("pydensecrf") is not None
    unaries = two_passes(case.scores)
    for name in settings:
        forms: dict[str, Callable[[], list[Tensor]]] = {
            "ours": partial(_refine, case.image, unaries, PUBLISHED[name], device)
        }
        if has_package:
            forms["package"] = partial(_package, case.image, unaries, PUBLISHED[name])
        seconds = median_seconds(forms, rounds=rounds, synchronise=synchroniser(device))
        package = seconds.get("package")
        agreement = _agreement(forms["ours"](), forms["package"]()) if has_package else None
        if agreement is not None and agreement < LEAST_AGREEMENT:
            raise WsssError(
                f"'{case.name}', {name}: {agreement:.6f} of the pixels are labelled as by "
                f"pydensecrf2, expected at least {LEAST_AGREEMENT}"
            )
        yield CrfRow(
            case.name,
            (case.image.shape[0], case.image.shape[1]),
            len(unaries[0]),
            name,
            device.type,
            seconds["ours"],
            package,
            seconds["ours"] / package if package else None,
            agreement,
        )


def two_passes(scores: Tensor) -> list[Tensor]:
    """Unaries (1 + n, H, W) of the confident foreground and background labelling."""
    return [
        unary_from_scores(torch.cat([background_score(scores, "power", alpha), scores]))
        for alpha in ALPHAS
    ]


def _refine(
    image: NDArray[np.uint8], unaries: list[Tensor], settings: CrfSettings, device: torch.device
) -> list[Tensor]:
    return DenseCrf(image, settings, device=device).refine_many(unaries)


def _package(
    image: NDArray[np.uint8], unaries: list[Tensor], settings: CrfSettings
) -> list[Tensor]:
    return [published.package_crf(image, unary, settings) for unary in unaries]


def _agreement(ours: list[Tensor], expected: list[Tensor]) -> float:
    same = [
        (one.argmax(0).cpu() == other.argmax(0)).double().mean()
        for one, other in zip(ours, expected, strict=True)
    ]
    return float(torch.stack(same).mean())
