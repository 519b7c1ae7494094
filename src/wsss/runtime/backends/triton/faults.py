"""What goes wrong with a Triton server: faults, how they are retried, the errors they end in.

The two protocols name the same faults differently (HTTP status codes, gRPC's names, exceptions of
sockets and parsers). They are sorted here by what helps against them. The texts are those of
Triton 2.51, see `tests/runtime/backends/test_triton_client.py`.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from http.client import HTTPException, IncompleteRead
from typing import Any, TypeVar

from ....errors import (
    ArtifactError,
    ConfigError,
    DataError,
    DeadlineError,
    ServerError,
    ShapeError,
    WsssError,
    one_line,
)
from ..contract import Array, run_failure
from .options import ServerUrl


class FaultKind(Enum):
    """What happened to a request."""

    AWAY = "no connection, so nothing was sent: the server may have been replaced"
    LOST = "the connection broke: the server may have answered, or have been replaced"
    BUSY = "refused by a full queue or by a server that starts or stops"
    LATE = "the deadline has passed"
    UNKNOWN = "no such model or version"
    INVALID = "a request that the model cannot take"
    FAILED = "the model failed on this input"
    FOREIGN = "whatever answers is no Triton server of this protocol"
    CANCELLED = "given up by this side"


class Fault(Exception):
    """A request without an answer.

    Attributes:
        kind: what helps depends on it.
        text: what the server or the socket said, in one line.
    """

    def __init__(self, kind: FaultKind, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


_NO_ID = "[request id: <id_unknown>]"
"""Stands in Triton's messages, as our requests have no id."""
_BY_STATUS = {
    **dict.fromkeys(("502", "503", "504", "429"), FaultKind.BUSY),
    **dict.fromkeys(("StatusCode.NOT_FOUND", "404"), FaultKind.UNKNOWN),
    **dict.fromkeys(("StatusCode.DEADLINE_EXCEEDED", "408"), FaultKind.LATE),
    **dict.fromkeys(("StatusCode.CANCELLED", "499"), FaultKind.CANCELLED),
    **dict.fromkeys(("StatusCode.INVALID_ARGUMENT", "400", "413"), FaultKind.INVALID),
    # gRPC's library and the server behind it both say UNAVAILABLE, and tritonclient passes on
    # nothing else but a text. What is not certainly the server's word counts as a connection that
    # broke, after which nothing is taken for granted.
    "StatusCode.UNAVAILABLE": FaultKind.LOST,
    # gRPC's own limit of a message, told by either side; not an overload.
    "StatusCode.RESOURCE_EXHAUSTED": FaultKind.INVALID,
    # No such service: another program behind this port.
    "StatusCode.UNIMPLEMENTED": FaultKind.FOREIGN,
}
# Triton gives one status to things that need different help: only its texts tell them apart.
_BY_TEXT = (
    # In the queue of the server, which keeps the request's `timeout`.
    ("timeout expired", (FaultKind.BUSY, FaultKind.LOST), FaultKind.LATE),
    # The process of a Python model died; Triton says INTERNAL.
    ("not healthy", (FaultKind.FAILED,), FaultKind.BUSY),
    ("maximum queue size", (FaultKind.LOST,), FaultKind.BUSY),
    ("stopping", (FaultKind.LOST,), FaultKind.BUSY),
    ("not ready", (FaultKind.LOST,), FaultKind.BUSY),
    ("not at ready state", (FaultKind.LOST,), FaultKind.BUSY),
    ("failed to connect", (FaultKind.LOST,), FaultKind.AWAY),
)


def fault_of(error: BaseException) -> Fault | None:
    """The fault behind an exception of tritonclient or below it; None: it is no such exception."""
    text = one_line(error)
    status = getattr(error, "status", None)
    if callable(status):  # InferenceServerException
        return answered_fault(str(status()), _message(error) or text)
    if isinstance(error, TimeoutError):
        return Fault(FaultKind.LATE, text)
    if isinstance(error, OSError):
        return Fault(FaultKind.LOST, error.strerror or text)
    if isinstance(error, IncompleteRead):
        return Fault(FaultKind.LOST, "the answer broke off")
    if isinstance(error, HTTPException):
        return Fault(FaultKind.FOREIGN, "the answer is no HTTP")
    return None


def answered_fault(status: str, text: str) -> Fault:
    """The fault that a server tells by HTTP's status code or gRPC's name of one."""
    text = " ".join(text.replace(_NO_ID, "").split())
    kind = _BY_STATUS.get(status, FaultKind.FAILED)
    lower = text.lower()
    for part, kinds, instead in _BY_TEXT:
        if kind in kinds and part in lower:
            return Fault(instead, text)
    if kind is FaultKind.UNKNOWN and "model" not in lower:
        kind = FaultKind.FOREIGN  # a web server that has no such page
    return Fault(kind, text)


def _message(error: Any) -> str:
    message = getattr(error, "message", None)
    found = message() if callable(message) else None
    return str(found or "")


T = TypeVar("T")
RETRIED = frozenset({FaultKind.AWAY, FaultKind.LOST, FaultKind.BUSY})
"""Faults that time can heal; a request that is wrong stays so."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a request is tried.

    Raises:
        ConfigError: a negative number.
    """

    retries: int = 5
    """Tries after the first one."""
    total_s: float = 60.0
    """Seconds from the first failure to the last try."""
    first_s: float = 0.1
    """The first pause; each further one is twice as long."""
    longest_s: float = 2.0
    """No pause is longer."""

    def __post_init__(self) -> None:
        for name in ("retries", "total_s", "first_s", "longest_s"):
            if not getattr(self, name) >= 0:  # NaN is refused, too
                raise ConfigError(f"`{name}` is {getattr(self, name)}, must be 0 or more")

    def pause(self, retry: int, share: float) -> float:
        """Seconds before a retry.

        Args:
            retry: 0 for the first one.
            share: random number in [0, 1): half of a pause is left to chance, so that clients
                which failed together do not come back together.
        """
        # 2.0 ** 1024 would be too large for a float.
        whole = min(self.longest_s, self.first_s * 2.0 ** min(retry, 60))
        return whole * (0.5 + 0.5 * share)


class GaveUp(Exception):
    """The last fault of a request that was tried as often as allowed."""

    def __init__(self, fault: Fault, tries: int, seconds: float) -> None:
        super().__init__(fault.text)
        self.fault, self.tries, self.seconds = fault, tries, seconds


class Stopped(Exception):
    """Somebody closed the graph during a pause."""


@dataclass
class Retrier:
    """Applies a policy; the clock, the waiting and chance can be replaced."""

    policy: RetryPolicy
    stop: threading.Event = field(default_factory=threading.Event)
    """Ends every pause and all further tries."""
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[float], bool] | None = None
    """Waits seconds and says whether to stop; None: `stop.wait`."""
    chance: Callable[[], float] = random.random

    def call(self, attempt: Callable[[], T], retried: frozenset[FaultKind] = RETRIED) -> T:
        """What an attempt returns, tried again after the faults in `retried`.

        Raises:
            GaveUp: a fault that is not retried, or once too often or too late.
            Stopped: see `stop`.
        """
        first_failure: float | None = None
        tries = 0
        while True:
            if self.stop.is_set():
                raise Stopped
            try:
                return attempt()
            except Fault as fault:
                now = self.clock()
                first_failure = now if first_failure is None else first_failure
                spent = now - first_failure
                tries += 1
                pause = self.policy.pause(tries - 1, self.chance())
                is_over = tries > self.policy.retries or spent + pause > self.policy.total_s
                if fault.kind not in retried or is_over:
                    raise GaveUp(fault, tries, spent) from fault
            if (self.wait or self.stop.wait)(pause):
                raise Stopped


def failure(
    outcome: GaveUp,
    url: ServerUrl,
    model: str,
    deadline_s: float,
    arrays: Mapping[str, Array] | None = None,
) -> WsssError:
    """The error of a request that got no answer.

    Args:
        arrays: the inputs, whose shapes the message gives where they may be the reason.
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
