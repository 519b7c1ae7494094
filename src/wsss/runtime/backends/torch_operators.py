"""The operators that the torch backend knows, and what prepares a node of a graph to run.

Semantics are those of opset 18 to 20. Elementwise, layout and spatial operators have files of their
own; reductions are here. Constant, Loop and If are no operators but parts of `torch_graph.py`.
"""

from collections.abc import Callable

import onnx
import torch
from torch import Tensor

from .torch_elementwise import ELEMENTWISE
from .torch_layout import LAYOUT
from .torch_node import Attributes, Compute, Operator, numbers, with_settings
from .torch_spatial import SPATIAL

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _reduction(reduce: Reduction) -> Operator:
    """A reduction over axes that come as an input, as in opset 18."""

    def prepare(given: Attributes) -> Compute:
        keep = bool(given.take("keepdims", 1))
        keeps_all = bool(given.take("noop_with_empty_axes", 0))

        def compute(values: Tensor, axes: Tensor | None = None) -> Tensor:
            places = [] if axes is None else numbers(axes)
            if not places and keeps_all:
                return values
            return reduce(values, places or list(range(values.dim())), keep)

        return compute

    return with_settings(prepare, 1)


def _sum(values: Tensor, axes: list[int], keep: bool) -> Tensor:
    return values.sum(axes, keep, dtype=values.dtype)


def _argmax(given: Attributes) -> Compute:
    axis, keep = given.take("axis", 0), bool(given.take("keepdims", 1))
    given.choose("select_last_index", 0)
    return lambda values: values.argmax(axis, keep)


OPERATORS: dict[str, Operator] = {
    **ELEMENTWISE,
    **LAYOUT,
    **SPATIAL,
    "ArgMax": Operator(_argmax),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(_sum),
}
"""Operator type in the domain of ONNX -> what computes it."""


def prepare(node: onnx.NodeProto, place: str) -> Compute:
    """What computes a node.

    Args:
        place: the node in an error message.

    Raises:
        ArtifactError: an operator or an attribute that is not implemented.
    """
    given = Attributes(node, place)
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise given.refusal(f"operator {name} is not supported by the torch backend")
    compute = OPERATORS[node.op_type].prepare(given)
    given.finish()
    return compute
