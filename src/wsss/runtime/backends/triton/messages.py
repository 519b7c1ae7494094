"""What is said between a client and a Triton server, whatever the protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..contract import Array


@dataclass(frozen=True)
class Place:
    """Bytes in a registered region of shared memory."""

    region: str
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class SentInput:
    """An input of a request; with a place its bytes are there and only the shape is sent."""

    name: str
    datatype: str
    array: Array
    place: Place | None = None


@dataclass(frozen=True)
class WantedOutput:
    """An output of a request; with a place the server writes it there."""

    name: str
    place: Place | None = None


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        arrays: outputs that were sent; read-only, they share the memory of the message.
        shapes: of all outputs.
        version: of the model that computed them.
    """

    arrays: dict[str, Array]
    shapes: dict[str, tuple[int, ...]]
    version: str


class Transport(Protocol):
    """A server, spoken to; every method raises `Fault` and ends within `deadline_s` seconds."""

    def metadata(self, model: str, version: str, deadline_s: float) -> dict[str, Any]:
        """The model's metadata in the form of JSON over HTTP."""

    def config(self, model: str, version: str, deadline_s: float) -> dict[str, Any]:
        """The model's configuration in the form of JSON over HTTP."""

    def served(self, deadline_s: float) -> list[str]:
        """Names of the models that are ready."""

    def statistics(self, model: str, version: str, deadline_s: float) -> dict[str, int]:
        """`inference_count` and `execution_count` of a model."""

    def infer(
        self,
        model: str,
        version: str,
        inputs: Sequence[SentInput],
        outputs: Sequence[WantedOutput],
        deadline_s: float,
    ) -> Answer:
        """Run a model."""

    def register(self, name: str, key: str, num_bytes: int, deadline_s: float) -> None:
        """Let the server map the shared memory `key` under a name."""

    def unregister(self, name: str, deadline_s: float) -> None:
        """Let the server forget it."""

    def close(self) -> None:
        """Drop all connections; requests under way fail."""
