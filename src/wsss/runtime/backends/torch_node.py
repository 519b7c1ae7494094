"""A node of an ONNX graph as the torch backend sees it: its attributes, and what computes it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto

from ...errors import ArtifactError

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}
"""Element types that the operators are tested with, by their number in ONNX."""

Compute = Callable[..., Any]
"""Tensors, None for an omitted input -> a tensor, or a sequence of them."""


class Attributes:
    """Attributes of a node, taken one by one; what nobody takes is refused.

    Refusals come while the graph is opened: a run never stops for an attribute.
    """

    def __init__(self, node: onnx.NodeProto, place: str) -> None:
        self.place = place
        """The node in an error message."""
        self.num_outputs = len([name for name in node.output if name])
        self._given = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}

    def take(self, name: str, default: Any) -> Any:
        """The value of an attribute; strings as str."""
        value = self._given.pop(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def choose(self, name: str, *accepted: Any) -> Any:
        """An attribute that has few values, of which the first is the default.

        Raises:
            ArtifactError: another value.
        """
        value = self.take(name, accepted[0])
        if value not in accepted:
            choices = " or ".join(map(str, accepted))
            raise self.refusal(f"`{name}` is {value}, the torch backend takes {choices}")
        return value

    def element_type(self, name: str, default: int) -> torch.dtype:
        """The type that an attribute names.

        Raises:
            ArtifactError: a type that torch does not compute with here.
        """
        return self.checked_type(self.take(name, default))

    def checked_type(self, number: int) -> torch.dtype:
        """Type by its number in ONNX; raises like `element_type`."""
        if number not in DTYPES:
            name = TensorProto.DataType.Name(number)
            raise self.refusal(f"element type {name} is not supported by the torch backend")
        return DTYPES[number]

    def finish(self) -> None:
        """Refuse what is left.

        Raises:
            ArtifactError: an attribute that the operator does not implement.
        """
        if self._given:
            name = next(iter(self._given))
            raise self.refusal(f"attribute `{name}` is not supported by the torch backend")

    def refusal(self, reason: str) -> ArtifactError:
        """The error for this node."""
        return ArtifactError(f"{self.place}: {reason}; use the backend onnxruntime")


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        prepare: reads the attributes of a node, once, and returns what computes it.
        settings: positions of inputs that are read as numbers (shapes, axes, bounds). Those stay
            on the CPU where they can, because reading them from a GPU would stop it.
    """

    prepare: Callable[[Attributes], Compute]
    settings: frozenset[int] = frozenset()


def plain(compute: Compute) -> Operator:
    """An operator without attributes."""
    return Operator(lambda given: compute)


def with_settings(prepare: Callable[[Attributes], Compute], *positions: int) -> Operator:
    """An operator that reads these inputs as numbers."""
    return Operator(prepare, frozenset(positions))


def numbers(values: torch.Tensor) -> list[int]:
    """Elements of an integer tensor."""
    return [int(value) for value in values.reshape(-1).tolist()]


def surrounded(
    values: torch.Tensor, before: Sequence[int], after: Sequence[int], fill: float
) -> torch.Tensor:
    """Values with margins around their last axes; negative ones cut."""
    # torch counts from the last axis: before and after of it, then of the one in front of it.
    pairs = zip(reversed(before), reversed(after), strict=True)
    return F.pad(values, [amount for pair in pairs for amount in pair], value=fill)
