"""A server in the foreground: signals reach it, and what it has accepted is answered."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ...errors import ServerError
from .local_server import READY_SECONDS, LocalServer

_POLL_SECONDS = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Asked:
    """Signals that came; the second one does not wait for the server."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self.number: int | None = None
        self.is_impatient = False
        self.event = threading.Event()

    def take(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            self.is_impatient = True
            self._server.end_now()
        else:
            self.number = number
        self.event.set()


def serve_in_foreground(
    server: LocalServer,
    on_ready: Callable[[], None],
    on_drain: Callable[[], None],
    *,
    ready_seconds: float = READY_SECONDS,
) -> int | None:
    """Start a server, and stay until it was asked to end by SIGTERM or SIGINT.

    A first signal lets the server answer what it has accepted; a second one kills it.

    Args:
        on_ready: called once, when all models are loaded.
        on_drain: called when a signal came.

    Returns:
        The signal.

    Raises:
        ServerError: it did not become ready, ended without being asked, was killed by a second
        signal, or needed more time to end than it has.
    """
    with _signals(server) as asked:
        server.start(wait=False)
        try:
            if server.wait_ready(ready_seconds, asked.event.is_set):
                on_ready()
            while not asked.event.wait(_POLL_SECONDS):
                if server.has_ended():
                    raise server.failure("ended by itself")
            on_drain()
        except BaseException:
            server.stop()
            raise
        code = server.stop()
        if asked.is_impatient:
            raise ServerError("tritonserver was killed by the second signal: requests may be lost")
        if code != 0:
            raise server.failure(
                f"was given {server.drain_seconds} s to end, and cut off requests or connections "
                "that were still open; give it more, or have clients close what they do not use"
            )
    return asked.number


@contextmanager
def _signals(server: LocalServer) -> Iterator[_Asked]:
    """Inside of it signals are taken for the server; they are as before afterwards."""
    asked = _Asked(server)
    before = {number: signal.signal(number, asked.take) for number in _SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
