"""Random walk of score maps along affinities, without ever forming an N x N matrix.

One step replaces each cell by a weighted mean of itself and its partners: T = D^-1 W, with W
symmetric and of unit diagonal. Source: AffinityNet (Ahn, Kwak, CVPR 2018), where T is squared
`log2(steps)` times. Here T^steps acts on the maps through shifted multiply-adds, and a Chebyshev
polynomial of far lower degree stands in for the power.
"""

import importlib.util
import logging
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from ...errors import ConfigError, DataError, MissingDependencyError, ShapeError
from .fast.walk_torch import FlatWalk
from .pairs import PairOffsets

Method = Literal["chebyshev", "power"]
Form = Literal["auto", "torch", "native", "fused"]
"""torch works everywhere; native is compiled by numba for a CPU, fused by Triton for CUDA."""

_CPU_CELLS = 48 * 1024
"""Padded cells that walk together on a CPU; more leave the cache, fewer pay for their calls."""
_NATIVE_VALUES = 1024
"""Scores from which the compiled walk is worth the second that loading it takes once."""
_PACKAGES = {
    "native": ("numba", "pip install 'wsss[fast]'"),
    "fused": ("triton", "pip install triton"),
}
_AFFINITY_SLACK = 1e-5
"""Rounding by which an affinity may pass 1."""
_NEGLIGIBLE = 1e-40
"""Coefficients below this share of the greatest are not computed."""


class Walk(Protocol):
    """T of some images of one size, ready to be applied."""

    def power(self, steps: int) -> Tensor:
        """(B, n, h, w): T^steps times the scores."""

    def polynomial(self, coefficients: tuple[float, ...]) -> Tensor:
        """(B, n, h, w): sum of coefficient j times the j-th Chebyshev polynomial of T."""


WalkClass = Callable[[Tensor, Tensor, PairOffsets], Walk]
"""(scores, affinity, pairs) -> their walk."""


@torch.no_grad()
def propagate(
    scores: Tensor,
    affinity: Tensor,
    *,
    radius: int = 5,
    steps: int = 256,
    tolerance: float = 1e-4,
    method: Method = "chebyshev",
    form: Form = "auto",
) -> Tensor:
    """Propagate score maps with a random walk along affinities.

    One step replaces each cell by a mean of itself (weight 1) and its partners (weight: their
    affinity). A constant map stays constant. Cells without any affinity keep their score, so
    images of different size can share a batch if they are padded with zero affinity. No N x N
    matrix is formed, and no gradient flows through it.

    Args:
        scores: (B, n, h, w) floating and finite, n maps per image; half precision is computed in
            float32.
        affinity: (B, K, h, w) in [0, 1], from `affinity_from_features` or `affinity_from_boundary`.
        radius: the radius that the affinities were computed with, in grid cells.
        steps: number of steps, >= 0; the published walk takes 256.
        tolerance: error that replacing the steps by a polynomial may cause at any cell, for scores
            in [0, 1]; for other scores it scales with their range. float32 adds about 1e-5.
        method: `chebyshev` for that polynomial, or `power` to compute one step after the other.
        form: implementation: `torch`, `native` (numba, CPU), `fused` (Triton, CUDA), or `auto` for
            the fastest that is installed. They differ by float32 rounding.

    Returns:
        (B, n, h, w) float32 (float64 for float64 scores).

    Raises:
        ShapeError: the shapes do not fit each other or the radius.
        DataError: `scores` holds NaN or infinity, or `affinity` has values outside [0, 1].
        ConfigError: `steps`, `tolerance`, `method` or `form` is invalid.
        MissingDependencyError: the package of the form is not installed.
    """
    pairs = PairOffsets(radius)
    _require_inputs(scores, affinity, pairs)
    if method not in get_args(Method):
        raise ConfigError(
            f"unknown `method` '{method}': choose one of {', '.join(get_args(Method))}"
        )
    coefficients = chebyshev_coefficients(steps, tolerance, radius=radius)
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    result = scores.to(dtype, copy=True).contiguous()
    if steps == 0 or scores.numel() == 0:
        return result
    walk_class = choose_form(result, form)
    for images in _micro_batches(scores, radius) if walk_class is FlatWalk else [slice(None)]:
        walk = walk_class(result[images], affinity[images].to(dtype), pairs)
        if method == "power" or len(coefficients) > steps:
            result[images] = walk.power(steps)
        else:
            result[images] = walk.polynomial(coefficients)
    return result


def choose_form(scores: Tensor, form: Form = "auto") -> WalkClass:
    """The class that walks for `propagate`.

    Args:
        scores: (B, n, h, w) as they walk; their device, type and size decide under `auto`.

    Raises:
        ConfigError: unknown form, or one that cannot compute on this device or in this type.
        MissingDependencyError: the form's package is not installed.
    """
    if form not in get_args(Form):
        raise ConfigError(f"unknown `form` '{form}': choose one of {', '.join(get_args(Form))}")
    on_cpu, is_float = scores.device.type == "cpu", scores.dtype == torch.float32
    compiled: Form = "native" if on_cpu else "fused"
    if form == "auto":
        is_small = on_cpu and scores.numel() < _NATIVE_VALUES
        found = None if is_small or not is_float else _load_form(compiled)
        return FlatWalk if found is None or isinstance(found, str) else found
    if form == "torch":
        return FlatWalk
    if form != compiled or not is_float:
        place = "a CPU" if form == "native" else "a CUDA device"
        raise ConfigError(
            f"`form` '{form}' walks float32 on {place}; the scores are {scores.dtype} on "
            f"{scores.device}: choose auto or torch"
        )
    found = _load_form(form)
    if isinstance(found, str):
        raise MissingDependencyError(f"`form` '{form}' cannot be used: {found}; choose torch")
    return found


@lru_cache(maxsize=2)
def _load_form(form: Form) -> WalkClass | str:
    """A compiled form, or why it cannot be used here; said once where its package is installed."""
    package, remedy = _PACKAGES[form]
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed ({remedy})"
    try:
        if form == "native":
            from .fast.walk_numba import NativeWalk

            return NativeWalk
        from .fast.walk_triton import FusedWalk, is_available

        return FusedWalk if is_available() else "no CUDA device"
    # numba refuses numpy versions it does not know (ImportError) and places where it can keep
    # nothing (RuntimeError): set NUMBA_CACHE_DIR.
    except (ImportError, RuntimeError) as error:
        reason = f"{package} is installed but does not work here: {error}"
        logging.getLogger(__name__).warning("%s; walking in plain torch", reason)
        return reason


def chebyshev_degree(steps: int, tolerance: float, *, radius: int = 5) -> int:
    """Degree of the polynomial that replaces `steps` steps; `steps` where none is cheaper.

    The coefficients beyond the degree sum to a tail that bounds the error in the mean over cells
    weighted by degree. At single cells it can exceed the tail by about sqrt(d_max / d_min), which
    is at most sqrt(2 K + 1) because weights lie in [0, 1] and the diagonal is 1. Twice that factor
    is allowed for: it is not proven, but over nine families of weights, scores chosen to be the
    worst for each took 8.8 of the 16.6 tails that radius 5 grants.

    Raises:
        ConfigError: steps or tolerance is negative or no number.
    """
    return len(chebyshev_coefficients(steps, tolerance, radius=radius)) - 1


@lru_cache(maxsize=64, typed=True)
def chebyshev_coefficients(steps: int, tolerance: float, *, radius: int = 5) -> tuple[float, ...]:
    """Coefficients c_j of T^steps = sum of c_j times the j-th Chebyshev polynomial of T, cut.

    They sum to 1, so constants stay constant. Those of the other parity than `steps` are 0.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise ConfigError(f"`steps` is {steps}, must be a whole number >= 0")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigError(f"`tolerance` is {tolerance}, must be a finite number >= 0")
    shares = _distance_shares(steps)
    allowed = tolerance / (2 * math.sqrt(2 * len(PairOffsets(radius)) + 1))
    degree, tail = steps, 0.0
    for distance in sorted(shares, reverse=True):
        if tail > allowed:
            break
        degree, tail = distance, tail + shares[distance]
    kept = [shares.get(distance, 0.0) for distance in range(degree + 1)]
    total = math.fsum(kept)
    return tuple(share / total for share in kept)


def _distance_shares(steps: int) -> dict[int, float]:
    """c_j of t^steps on [-1, 1]: the chance that a coin-flip walk of `steps` steps ends j away."""
    distance = steps % 2
    shares = {distance: 1.0 if distance else 0.5}
    while distance < steps:
        ratio = (steps - distance) / (steps + distance + 2)
        share = shares[distance] * ratio * (1 if distance else 2)
        if share < _NEGLIGIBLE:
            break
        distance += 2
        shares[distance] = share
    total = math.fsum(shares.values())
    return {distance: share / total for distance, share in shares.items()}


def _micro_batches(scores: Tensor, radius: int) -> list[slice]:
    batch, _, height, width = scores.shape
    if scores.device.type != "cpu":
        return [slice(0, batch)]
    count = max(1, _CPU_CELLS // (height * (width + radius - 1)))
    return [slice(start, start + count) for start in range(0, batch, count)]


def _require_inputs(scores: Tensor, affinity: Tensor, pairs: PairOffsets) -> None:
    if scores.ndim != 4 or 0 in scores.shape[2:]:
        raise ShapeError(
            f"`scores` are {tuple(scores.shape)}, expected (B, n, h, w) with h, w >= 1"
        )
    batch, _, height, width = scores.shape
    expected = (batch, len(pairs), height, width)
    if tuple(affinity.shape) != expected:
        raise ShapeError(
            f"`affinity` is {tuple(affinity.shape)}, expected {expected} for scores"
            f" {tuple(scores.shape)} and radius {pairs.radius}"
        )
    for name, values in (("scores", scores), ("affinity", affinity)):
        if not values.is_floating_point():
            raise DataError(f"`{name}` are {values.dtype}, expected floating point")
    if scores.numel() and not bool(torch.isfinite(scores).all()):
        raise DataError("`scores` hold NaN or infinity, expected finite values")
    if affinity.numel():
        low, high = (float(bound) for bound in torch.aminmax(affinity))
        # Written so that NaN fails too.
        if not (low >= 0 and high <= 1 + _AFFINITY_SLACK):
            raise DataError(f"`affinity` spans {low:g} to {high:g}, expected values in [0, 1]")
