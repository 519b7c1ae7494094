"""Where a Triton server is and how it is asked; checked before anything is sent."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from ....errors import ConfigError

MAX_IN_FLIGHT = 1024

_SCHEMES = ("http", "https", "grpc", "grpcs")
_PORTS = {"http": 8000, "https": 8000, "grpc": 8001, "grpcs": 8001}
_FORMS = "http://HOST:PORT, https://HOST:PORT, grpc://HOST:PORT or grpcs://HOST:PORT"
# A host name, or an IPv6 address in brackets; what follows it may only be a port.
_PLACE = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True)
class ServerUrl:
    """A parsed URL of a server.

    Attributes:
        protocol: http or grpc.
        is_encrypted: by TLS.
        host: without the brackets of an IPv6 address.
    """

    protocol: Literal["http", "grpc"]
    is_encrypted: bool
    host: str
    port: int

    @property
    def address(self) -> str:
        """host:port, as clients take it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.protocol}{'s' if self.is_encrypted else ''}://{self.address}"


def parse_url(url: str) -> ServerUrl:
    """The parts of `http://host:port`, with https, grpc and grpcs; without a scheme it is http.

    A missing port is 8000, for gRPC 8001: what Triton listens on by default.

    Raises:
        ConfigError: another scheme, a path, a user, or a port outside of 1 to 65535.
    """
    scheme, separator, rest = url.strip().rpartition("://")
    scheme = scheme.lower() if separator else "http"
    found = _PLACE.fullmatch(rest.removesuffix("/"))
    if scheme not in _SCHEMES or found is None:
        raise ConfigError(f"'{url}' is no URL of a Triton server: expected {_FORMS}")
    port = int(found["port"] or _PORTS[scheme])
    if not 1 <= port <= 65535:
        raise ConfigError(f"the port of '{url}' is {port}, expected 1 to 65535")
    protocol: Literal["http", "grpc"] = "grpc" if scheme.startswith("grpc") else "http"
    return ServerUrl(protocol, scheme.endswith("s"), found["host"].strip("[]"), port)


@dataclass(frozen=True)
class TritonOptions:
    """A server that labels images, and how a job uses it.

    Raises:
        ConfigError: a value outside of its range.
    """

    url: str
    """See `parse_url`."""
    model: str | None = None
    """Name on the server; None: `label` for the walk, `segmenter` for the segmenter."""
    in_flight: int = 8
    """Requests under way at once."""
    deadline_s: float = 60.0
    """Seconds for one request."""
    patience_s: float = 120.0
    """Seconds that one outage or overload of the server may last."""

    def __post_init__(self) -> None:
        parse_url(self.url)
        if self.model is not None and not re.fullmatch(r"[\w.-]{1,200}", self.model):
            raise ConfigError(
                f"'{self.model}' is no name of a Triton model: expected letters, digits, '.', '_' "
                "or '-'"
            )
        if not 1 <= self.in_flight <= MAX_IN_FLIGHT:
            raise ConfigError(f"`in_flight` is {self.in_flight}, expected 1 to {MAX_IN_FLIGHT}")
        check_seconds("deadline", self.deadline_s)
        if not 0 <= self.patience_s < math.inf:
            raise ConfigError(f"`patience` is {self.patience_s:g} s, must be 0 or more")


def check_seconds(name: str, seconds: float) -> None:
    """Refuse a time limit that nothing can keep.

    Raises:
        ConfigError: below a millisecond, above a day, or no number.
    """
    if not 0.001 <= seconds <= 86_400:  # NaN is refused, too
        raise ConfigError(f"`{name}` is {seconds:g} s, expected 0.001 to 86400")
