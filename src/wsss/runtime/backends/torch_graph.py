"""An ONNX graph as a list of steps in torch: constants, operators, loops and branches.

Everything that can be refused is refused while the steps are made. Whatever a step computes is
freed after the last step that reads it. Arithmetic on shapes stays on the CPU, so that a GPU never
has to stop and hand over a size.
"""

from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np
import onnx
import torch
from onnx import AttributeProto, numpy_helper
from torch import Tensor

from ...errors import ArtifactError
from .contract import run_failure
from .torch_node import Attributes, Compute, numbers
from .torch_operators import OPERATORS, prepare

Scope = ChainMap[str, Tensor]
"""Tensors by name: first those of a graph, then those of the graphs around it."""

_SMALL = 256
"""Elements up to which integers count as sizes or indices of a few things."""


class Placement:
    """Which tensors live on the device, and which on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def first(self, values: Tensor, is_setting: bool = False) -> Tensor:
        """Where an input or a constant belongs."""
        is_small = values.numel() <= _SMALL
        is_whole = values.dtype in (torch.int64, torch.int32, torch.bool)
        return values if is_small and (is_whole or is_setting) else values.to(self.device)

    def together(
        self, values: Sequence[Tensor | None], settings: frozenset[int]
    ) -> list[Tensor | None]:
        """Inputs of a step: where one is on the device all are, but for its settings."""
        mixed = [value for place, value in enumerate(values) if place not in settings]
        if all(value is None or value.device.type == "cpu" for value in mixed):
            return list(values)
        return [
            value if value is None or place in settings else value.to(self.device)
            for place, value in enumerate(values)
        ]

    def settled(self, result: Tensor) -> Tensor:
        """A result: what has grown large on the CPU is no arithmetic on shapes any more."""
        return result.to(self.device) if result.numel() > _SMALL else result


class Step(Protocol):
    """One node."""

    @property
    def place(self) -> str:
        """The node in an error message."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names, empty for those that nobody wants."""

    def run(self, scope: Scope) -> Sequence[Tensor]:
        """The node's outputs."""


@dataclass(frozen=True)
class Plan:
    """A graph or a subgraph.

    Attributes:
        spent: for each step, names that nothing reads after it.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: dict[str, Tensor]
    steps: tuple[Step, ...]
    spent: tuple[tuple[str, ...], ...]

    def run(self, given: dict[str, Tensor], around: Scope | None = None) -> list[Tensor]:
        """Compute the outputs.

        Args:
            given: inputs by name; they may replace constants.
            around: of the graph that contains this one.

        Raises:
            DataError: a step cannot run on its inputs, or memory ran out.
        """
        scope = Scope(given, self.constants, *(around.maps if around is not None else ()))
        for step, spent in zip(self.steps, self.spent, strict=True):
            try:
                results = step.run(scope)
            except (RuntimeError, IndexError, ValueError, MemoryError) as error:
                raise run_failure(step.place, error) from error
            for name, result in zip(step.outputs, results, strict=False):
                if name:
                    given[name] = result
            for name in spent:
                del given[name]
        return [scope[name] for name in self.outputs]


@dataclass(frozen=True)
class OperatorStep:
    """A node that is one operator."""

    place: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    compute: Compute
    settings: frozenset[int]
    placement: Placement

    def run(self, scope: Scope) -> Sequence[Tensor]:
        """Outputs of the operator."""
        values = [scope[name] if name else None for name in self.inputs]
        result = self.compute(*self.placement.together(values, self.settings))
        results = (result,) if isinstance(result, Tensor) else result
        return [self.placement.settled(value) for value in results]


@dataclass(frozen=True)
class LoopStep:
    """A node that repeats a subgraph; `limit` or `condition` may be empty, not both."""

    place: str
    limit: str
    condition: str
    carried: tuple[str, ...]
    outputs: tuple[str, ...]
    body: Plan

    def run(self, scope: Scope) -> Sequence[Tensor]:
        """Carried values after the last round."""
        go = bool(scope[self.condition]) if self.condition else True
        rounds = range(numbers(scope[self.limit])[0]) if self.limit else count()
        values = [scope[name] for name in self.carried]
        for index in rounds:
            if not go:
                break
            state = [torch.tensor(index), torch.tensor(go), *values]
            again, *values = self.body.run(dict(zip(self.body.inputs, state, strict=True)), scope)
            go = bool(again)
        return values


@dataclass(frozen=True)
class IfStep:
    """A node that runs one of two subgraphs."""

    place: str
    condition: str
    outputs: tuple[str, ...]
    branches: dict[bool, Plan]

    def run(self, scope: Scope) -> Sequence[Tensor]:
        """Outputs of the chosen branch."""
        return self.branches[bool(scope[self.condition])].run({}, scope)


class Planner:
    """Makes a plan of a graph and of the subgraphs in it."""

    def __init__(self, graph: onnx.GraphProto, file: str, device: torch.device) -> None:
        self._file, self._placement = file, Placement(device)
        self._operands = _operands(graph)

    def plan(self, graph: onnx.GraphProto) -> Plan:
        """Steps of a graph.

        Raises:
            ArtifactError: something in it that is not implemented.
        """
        if graph.sparse_initializer:
            raise ArtifactError(f"{self._file}: sparse constants are not supported by torch")
        constants = {tensor.name: self._constant(tensor) for tensor in graph.initializer}
        steps: list[Step] = []
        reads: list[set[str]] = []
        for index, node in enumerate(graph.node):
            place = f"{self._file}: node `{node.name or index}` ({node.op_type})"
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                constants[node.output[0]] = self._constant_node(node, place)
            else:
                steps.append(self._step(node, place))
                reads.append(_names_read(node))
        inputs = tuple(value.name for value in graph.input)
        outputs = tuple(value.name for value in graph.output)
        own = {name for name in inputs if name not in constants}
        spent = _spent(own, [step.outputs for step in steps], reads, outputs)
        return Plan(inputs, outputs, constants, tuple(steps), spent)

    def _step(self, node: onnx.NodeProto, place: str) -> Step:
        outputs = tuple(node.output)
        if node.op_type == "Loop":
            return self._loop(node, place)
        if node.op_type == "If":
            plans = {item.name: self.plan(item.g) for item in node.attribute}
            branches = {True: plans["then_branch"], False: plans["else_branch"]}
            return IfStep(place, node.input[0], outputs, branches)
        compute = prepare(node, place)
        settings = OPERATORS[node.op_type].settings
        return OperatorStep(place, tuple(node.input), outputs, compute, settings, self._placement)

    def _loop(self, node: onnx.NodeProto, place: str) -> LoopStep:
        limit, condition, *carried = (*node.input, "", "")[: max(2, len(node.input))]
        body: onnx.GraphProto = node.attribute[0].g
        given = Attributes(node, place)
        if len(body.output) != 1 + len(carried):
            raise given.refusal("outputs that collect every round are not supported by torch")
        if not limit and not condition:
            raise given.refusal("the loop has no end")
        return LoopStep(
            place, limit, condition, tuple(carried), tuple(node.output), self.plan(body)
        )

    def _constant(self, tensor: onnx.TensorProto) -> Tensor:
        place = f"{self._file}: constant `{tensor.name}`"
        Attributes(onnx.NodeProto(), place).checked_type(tensor.data_type)
        values = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
        return self._placement.first(values, tensor.name not in self._operands)

    def _constant_node(self, node: onnx.NodeProto, place: str) -> Tensor:
        (attribute,) = node.attribute
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name in ("value_float", "value_floats"):
            value = numpy_helper.from_array(np.array(value, np.float32))
        elif attribute.name in ("value_int", "value_ints"):
            value = numpy_helper.from_array(np.array(value, np.int64))
        elif attribute.name != "value":
            raise Attributes(node, place).refusal(f"`{attribute.name}` is not supported by torch")
        named = onnx.TensorProto()
        named.CopyFrom(value)
        named.name = node.output[0]
        return self._constant(named)


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [item.g for item in node.attribute if item.type == AttributeProto.GRAPH]


def _operands(graph: onnx.GraphProto) -> set[str]:
    """Names that some operator computes with, here or in a subgraph: not only settings."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        operator = OPERATORS.get(node.op_type)
        settings = operator.settings if operator else frozenset()
        names |= {name for place, name in enumerate(node.input) if place not in settings}
        for subgraph in _subgraphs(node):
            names |= _operands(subgraph)
    return names


def _names_read(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, itself or in its subgraphs."""
    names = set(node.input)
    for subgraph in _subgraphs(node):
        names |= {value.name for value in subgraph.output}
        for inner in subgraph.node:
            names |= _names_read(inner)
    return names


def _spent(
    own: set[str],
    outputs: Sequence[tuple[str, ...]],
    reads: Sequence[set[str]],
    kept: Sequence[str],
) -> tuple[tuple[str, ...], ...]:
    """For each step, the graph's own names that no later step reads and that are no output."""
    own = own.union(*outputs) - {""}
    later = set(kept)
    spent = []
    for written, read in zip(reversed(outputs), reversed(reads), strict=True):
        finished = (read.union(written) & own) - later
        spent.append(tuple(finished))
        later |= finished
    return tuple(reversed(spent))
