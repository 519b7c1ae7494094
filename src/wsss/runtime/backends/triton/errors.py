"""The errors of ours that faults of a Triton server end in: found, expected, remedy in one line."""

from collections.abc import Mapping

from ....errors import (
    ArtifactError,
    ConfigError,
    DataError,
    DeadlineError,
    ServerError,
    ShapeError,
    WsssError,
)
from ..contract import Array, run_failure
from .faults import FaultKind
from .options import ServerUrl
from .retry import GaveUp


def failure(
    outcome: GaveUp,
    url: ServerUrl,
    model: str,
    deadline_s: float,
    arrays: Mapping[str, Array] | None = None,
) -> WsssError:
    """The error of a request that got no answer.

    Args:
        arrays: the inputs, whose shapes are told where they may be the reason.
    """
    fault, server = outcome.fault, f"Triton at {url}"
    kind, text = fault.kind, fault.text
    tried = f"tried {outcome.tries} times in {outcome.seconds:.0f} s"
    if kind in (FaultKind.AWAY, FaultKind.LOST):
        return ServerError(
            f"no {server} ({text}; {tried}): start it by `wsss serve`, or check the URL"
        )
    if kind is FaultKind.BUSY:
        return ServerError(
            f"{server} takes no more requests for '{model}' ({text}; {tried}): have fewer in "
            "flight, or more patience"
        )
    if kind is FaultKind.UNKNOWN:
        return ServerError(
            f"{server} does not have '{model}' any more ({text}; {tried}): load it again"
        )
    if kind is FaultKind.FOREIGN:
        return ServerError(
            f"{url} is no Triton server of this protocol ({text}): HTTP usually has port 8000, "
            "gRPC 8001"
        )
    if kind is FaultKind.LATE:
        return DeadlineError(
            f"{server} did not answer within {deadline_s:g} s: allow more time, take smaller "
            "images or have fewer in flight"
        )
    shapes = ", ".join(f"`{name}` {array.shape}" for name, array in (arrays or {}).items())
    place = f"model '{model}' of {server}" + (f" on {shapes}" if shapes else "")
    if kind is FaultKind.INVALID:
        error = ShapeError if "shape" in text or "batch" in text else DataError
        return error(f"{place} refuses its inputs: {text}")
    return run_failure(place, fault)


def unknown_model(url: ServerUrl, model: str, version: str, ready: str) -> ConfigError:
    """The error of a model that is not there from the beginning.

    Args:
        ready: names of the models that are.
    """
    wanted = f"'{model}'" + (f" in version {version}" if version else "")
    return ConfigError(f"Triton at {url} has no model {wanted}; models that are ready: {ready}")


def other_model(url: ServerUrl, model: str) -> ArtifactError:
    """The error of a model whose answers cannot stand beside those of before."""
    return ArtifactError(
        f"Triton at {url} has another model as '{model}' now: serve the one that the job began "
        "with, or begin again"
    )
