"""HTTP with a server: a connection for each request, and a deadline for the whole of it.

Connections are not kept, which costs 0.15 ms a request on one host: when Triton ends it goes on
answering over connections that are open, and cuts them off when its time is over, whether or not
an answer is due. Where each ends with its request, no request is lost.
"""

import io
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage, HTTPResponse
from typing import Any

from ....errors import one_line
from .faults import Fault, FaultKind
from .options import ServerUrl

_PIECE = 1 << 14
"""Bytes that are sent at once: as many as TLS takes, which counts its time anew for each piece."""


@dataclass(frozen=True)
class HttpAnswer:
    """What a server answered, of whatever status."""

    status: int
    reason: str
    headers: HTTPMessage
    body: bytes


class HttpClient:
    """Sends requests; safe to use from several threads."""

    def __init__(self, url: ServerUrl) -> None:
        self._url = url
        self._tls = ssl.create_default_context() if url.is_encrypted else None
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    def send(
        self,
        method: str,
        path: str,
        deadline_s: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> HttpAnswer:
        """Ask, and read the whole answer.

        Args:
            deadline_s: seconds from the first to the last byte, however slowly they trickle. To
                connect may take as long again, with each address that the host has.

        Raises:
            Fault: of the kind AWAY: no connection. OSError, HTTPException: what happened to it.
        """
        with self._connected(deadline_s) as link:
            timed = _TimedSocket(link, deadline_s)
            connection = HTTPConnection(self._url.host, self._url.port)
            connection.sock = timed
            length = {"Content-Length": str(len(body)), "Connection": "close"}
            connection.request(method, f"/{path}", body, {**(headers or {}), **length})
            # Not by `getresponse`, which closes the socket before the answer is read.
            response = HTTPResponse(timed, method=method)  # type: ignore[arg-type]
            response.begin()
            return HttpAnswer(response.status, response.reason, response.headers, response.read())

    def close(self) -> None:
        """Cut off the requests under way, which raise."""
        with self._lock:
            for link in self._open:
                with suppress(OSError):
                    # Not the method of TLS, which another thread is in.
                    socket.socket.shutdown(link, socket.SHUT_RDWR)

    @contextmanager
    def _connected(self, seconds: float) -> Iterator[socket.socket]:
        host = self._url.host
        try:
            link = socket.create_connection((host, self._url.port), seconds)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                link = self._tls.wrap_socket(link, server_hostname=host)
        except OSError as error:
            raise Fault(FaultKind.AWAY, error.strerror or one_line(error)) from error
        with link:
            with self._lock:
                self._open.add(link)
            try:
                yield link
            finally:
                # Before it is closed, or `close` might meet another file of the same number.
                with self._lock:
                    self._open.discard(link)


class _TimedSocket(io.RawIOBase):
    """As much of a socket as `http.client` needs, all of it within one time limit."""

    def __init__(self, link: socket.socket, seconds: float) -> None:
        self._link, self._end = link, time.monotonic() + seconds

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            self._wait_at_most()
            self._link.sendall(view[start : start + _PIECE])

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._wait_at_most()
        return self._link.recv_into(buffer)

    def _wait_at_most(self) -> None:
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("timed out")
        self._link.settimeout(seconds)
