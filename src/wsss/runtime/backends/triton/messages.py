"""What is said between a client and a Triton server, whatever the protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..contract import Array


@dataclass(frozen=True)
class SentInput:
    """An input of a request."""

    name: str
    datatype: str
    array: Array


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        arrays: the outputs; read-only, because they share the memory of the message.
        version: version of the model that computed them.
    """

    arrays: dict[str, Array]
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
        outputs: Sequence[str],
        deadline_s: float,
    ) -> Answer:
        """Run a model."""

    def close(self) -> None:
        """Drop all connections; requests under way fail."""
