"""What goes wrong between a client and Triton, sorted by what helps against it.

The two protocols name the same faults differently (HTTP status codes, gRPC's names, exceptions of
sockets and parsers). The texts are those of Triton 2.51, see `tests/serving/test_client.py`.
"""

from enum import Enum
from http.client import HTTPException, IncompleteRead
from typing import Any

from ....errors import one_line


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
