"""`wsss bench walk`: every form of the random walk against dense squaring in the same process."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..errors import WsssError
from ..runtime.refine.boundary_affinity import affinity_from_boundary
from ..runtime.refine.feature_affinity import affinity_from_features
from ..runtime.refine.pairs import PairOffsets
from ..runtime.refine.pseudo_labels import WalkSettings
from ..runtime.refine.random_walk import Form, chebyshev_degree, propagate
from . import published_operators as published
from .machine import Machine, synchroniser
from .stages import median_seconds, peak_bytes

STRIDES, BATCHES = (8, 4), (1, 8, 32)
ROUNDING, LEAST_AGREEMENT = 2e-5, 0.9999
"""What float32 adds to the tolerance, and the least share of cells with the right argmax."""
DENSE_CELLS = 4000
"""Dense squaring of larger grids is extrapolated on a CPU, where it would take minutes."""


@dataclass(frozen=True)
class WalkCase:
    """Images of one grid.

    Attributes:
        features: (images, C, h, w) that affinities are made of.
        scores: (images, n, h, w) in [0, 1].
    """

    stride: int
    features: Tensor
    scores: Tensor


@dataclass(frozen=True)
class WalkRow:
    """One line of the table; ratios are of dense squaring over the form.

    Attributes:
        max_error, argmax_agreement: against 256 float64 steps, over all cells of the batch.
        memory_ratio: of the memory that an image adds to the process at its peak, dense squaring
            over the form; None where the machine does not tell.
        is_extrapolated: dense squaring was timed on a smaller grid and scaled by N^3 (memory by
            N^2).
        bandwidth_share: of the machine's copy bandwidth, if every weight came from memory once a
            Chebyshev step; above 1 caches serve them.
    """

    stride: int
    grid: tuple[int, int]
    batch: int
    device: str
    form: str
    seconds_per_image: float
    speedup: float
    memory_ratio: float | None
    max_error: float
    argmax_agreement: float
    is_extrapolated: bool
    bandwidth_share: float


@dataclass(frozen=True)
class _Dense:
    seconds: float
    bytes: float | None
    is_extrapolated: bool


def bench_walk(
    case: WalkCase,
    settings: WalkSettings,
    machine: Machine,
    *,
    batches: Sequence[int] = BATCHES,
    rounds: int = 5,
    device: torch.device,
) -> Iterator[WalkRow]:
    """Rows as they are measured: dense squaring once, then every form for every batch."""
    pairs = PairOffsets(settings.radius)
    features, scores = case.features.to(device), case.scores.to(device)
    affinity = affinity_from_features(features, radius=settings.radius, beta=settings.beta)
    dense = _measure_dense(scores[:1], affinity[:1], pairs, settings, device)
    exact_scores = _exact(scores, affinity, settings)
    for batch in batches:
        chosen = torch.arange(batch, device=device) % len(scores)
        forms = walk_forms(scores[chosen], affinity[chosen], settings)
        exact = exact_scores[chosen]
        seconds = median_seconds(forms, rounds=rounds, synchronise=synchroniser(device))
        for name, walk in forms.items():
            found = walk().double()
            _require_right(name, found, exact, settings)
            # onnxruntime's arena keeps the memory of earlier runs, so that it would not show.
            can_tell = device.type == "cpu" and name != "onnx"
            memory = peak_bytes(walk) if can_tell else None
            each = seconds[name] / batch
            moved = affinity[0].numel() * affinity.element_size() * _degree(settings) / 1e9
            yield WalkRow(
                case.stride,
                (scores.shape[-2], scores.shape[-1]),
                batch,
                device.type,
                name,
                each,
                dense.seconds / each,
                dense.bytes * batch / max(memory, 1) if dense.bytes and memory else None,
                float((found - exact).abs().max()),
                _agreement(found, exact),
                dense.is_extrapolated,
                moved / each / machine.gigabytes_per_second,
            )


def _require_right(name: str, found: Tensor, exact: Tensor, settings: WalkSettings) -> None:
    """No speed of a wrong result.

    Raises:
        WsssError: the form misses the tolerance, or the argmax in 1 of 10 000 cells.
    """
    error, agreement = float((found - exact).abs().max()), _agreement(found, exact)
    # Written so that NaN fails too.
    if not (error <= settings.tolerance + ROUNDING and agreement >= LEAST_AGREEMENT):
        raise WsssError(
            f"form '{name}' is wrong here: largest error {error:g}, argmax agreement "
            f"{agreement:.6f}; expected at most {settings.tolerance:g} and at least "
            f"{LEAST_AGREEMENT}"
        )


def _exact(scores: Tensor, affinity: Tensor, settings: WalkSettings) -> Tensor:
    """Every step by itself in float64."""
    return propagate(
        scores.double(),
        affinity.double(),
        radius=settings.radius,
        steps=settings.steps,
        method="power",
    )


def walk_forms(
    scores: Tensor, affinity: Tensor, settings: WalkSettings
) -> Mapping[str, Callable[[], Tensor]]:
    """The forms that this machine can run, by name."""
    forms: dict[str, Callable[[], Tensor]] = {}
    on_cpu = scores.device.type == "cpu"
    names: list[tuple[Form, str]] = [
        ("torch", "torch"),
        ("native", "numba") if on_cpu else ("fused", "triton"),
    ]
    for name, package in names:
        if importlib.util.find_spec(package) is not None:
            forms[name] = partial(
                propagate,
                scores,
                affinity,
                radius=settings.radius,
                steps=settings.steps,
                tolerance=settings.tolerance,
                form=name,
            )
    if on_cpu and all(
        importlib.util.find_spec(package) is not None for package in ("onnx", "onnxruntime")
    ):
        forms["onnx"] = _onnx_form(scores, affinity, settings)
    return forms


def _onnx_form(scores: Tensor, affinity: Tensor, settings: WalkSettings) -> Callable[[], Tensor]:
    import onnxruntime

    from ..export.graphs.walk import walk_model

    model = walk_model(radius=settings.radius, steps=settings.steps, tolerance=settings.tolerance)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = {"scores": scores.numpy(), "affinity": affinity.numpy()}

    def run() -> Tensor:
        return torch.from_numpy(np.asarray(session.run(["walked"], inputs)[0]))

    return run


def _measure_dense(
    scores: Tensor,
    affinity: Tensor,
    pairs: PairOffsets,
    settings: WalkSettings,
    device: torch.device,
) -> _Dense:
    """Dense squaring of one image, on a part of the grid where the whole takes too long."""
    height, width = scores.shape[-2:]
    factor = 1
    while device.type == "cpu" and (height // factor) * (width // factor) > DENSE_CELLS:
        factor += 1
    rows, columns = height // factor, width // factor
    part = (0, slice(None), slice(rows), slice(columns))
    walk = partial(published.dense_walk, scores[part], affinity[part], pairs, settings.steps)
    seconds = median_seconds({"dense": walk}, rounds=3, synchronise=synchroniser(device))["dense"]
    memory = peak_bytes(walk) if device.type == "cpu" else None
    ratio = (height * width) / (rows * columns)
    return _Dense(seconds * ratio**3, memory * ratio**2 if memory else None, factor > 1)


def _degree(settings: WalkSettings) -> int:
    return chebyshev_degree(settings.steps, settings.tolerance, radius=settings.radius)


def _agreement(found: Tensor, exact: Tensor) -> float:
    """Share of cells whose best map is the same, in [0, 1]."""
    return float((found.argmax(1) == exact.argmax(1)).double().mean())


@dataclass(frozen=True)
class AffinityRow:
    """Affinities of one image in compact form against the published indexing."""

    stride: int
    grid: tuple[int, int]
    source: str
    seconds_per_image: float
    speedup: float


def bench_affinity(
    case: WalkCase, settings: WalkSettings, *, rounds: int = 3
) -> Iterator[AffinityRow]:
    """From features, and from boundaries that are the features' contrast; one image, CPU."""
    pairs = PairOffsets(settings.radius)
    features = case.features[:1]
    boundary = _contrast(features)
    sources: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "features": (
            partial(published.indexed_feature_affinity, features[0], pairs, settings.beta),
            partial(affinity_from_features, features, radius=settings.radius, beta=settings.beta),
        ),
        "boundaries": (
            partial(published.indexed_boundary_affinity, boundary[0, 0], pairs, settings.beta),
            partial(affinity_from_boundary, boundary, radius=settings.radius, beta=settings.beta),
        ),
    }
    grid = (features.shape[-2], features.shape[-1])
    for source, (old, new) in sources.items():
        seconds = median_seconds({"old": old, "new": new}, rounds=rounds, synchronise=lambda: None)
        yield AffinityRow(
            case.stride, grid, source, seconds["new"], seconds["old"] / seconds["new"]
        )


def _contrast(features: Tensor) -> Tensor:
    """(1, 1, h, w) in [0, 1]: how much each cell differs from its right and lower neighbour."""
    steps = [features.diff(dim=dim).abs().mean(1, keepdim=True) for dim in (-2, -1)]
    down = torch.nn.functional.pad(steps[0], (0, 0, 0, 1))
    right = torch.nn.functional.pad(steps[1], (0, 1))
    contrast = torch.maximum(down, right)
    return contrast / contrast.amax().clamp(min=1e-12)
