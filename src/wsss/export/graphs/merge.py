"""What stands in a graph twice is computed once: equal weights, and equal operations on them.

Networks of one run often share their first layers: IRNet's backbone is frozen, AffinityNet's often
is, and no classifier trains its first ones. Where one image goes through both at one scale, such
layers become one, if all their weights are equal bit by bit.
"""

import hashlib
from collections.abc import Collection, Iterable

import onnx
from onnx import numpy_helper


def merge_equal(
    nodes: Iterable[onnx.NodeProto],
    constants: Iterable[onnx.TensorProto],
    outputs: Collection[str] = (),
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants without repetition; of equal ones the first keeps its name.

    Args:
        nodes: in an order in which they can run. Those with subgraphs stay, as do `Identity` nodes,
            which are there for their names.
        outputs: names that must stay.
    """
    renamed: dict[str, str] = {}
    kept_constants = _distinct_constants(constants, renamed)
    kept_nodes: list[onnx.NodeProto] = []
    seen: dict[tuple[object, ...], onnx.NodeProto] = {}
    for original in nodes:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        _rename(node, renamed)
        is_named = node.op_type == "Identity" or not set(node.output).isdisjoint(outputs)
        if is_named or _subgraphs(node):
            kept_nodes.append(node)
            continue
        first = seen.setdefault(_meaning(node), node)
        if first is node:
            kept_nodes.append(node)
        else:
            renamed.update(zip(node.output, first.output, strict=True))
    return kept_nodes, kept_constants


def _distinct_constants(
    constants: Iterable[onnx.TensorProto], renamed: dict[str, str]
) -> list[onnx.TensorProto]:
    kept: list[onnx.TensorProto] = []
    seen: dict[tuple[object, ...], str] = {}
    for tensor in constants:
        content = hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).digest()
        key = (tensor.data_type, tuple(tensor.dims), content)
        first = seen.setdefault(key, tensor.name)
        if first == tensor.name:
            kept.append(tensor)
        else:
            renamed[tensor.name] = first
    return kept


def _meaning(node: onnx.NodeProto) -> tuple[object, ...]:
    """Equal for nodes that compute the same."""
    attributes = sorted(attribute.SerializeToString() for attribute in node.attribute)
    return node.domain, node.op_type, tuple(node.input), tuple(attributes), len(node.output)


def _rename(node: onnx.NodeProto, renamed: dict[str, str]) -> None:
    """Also in subgraphs, whose own names no tensor outside of them has."""
    for index, value in enumerate(node.input):
        node.input[index] = renamed.get(value, value)
    for graph in _subgraphs(node):
        for inner in graph.node:
            _rename(inner, renamed)
        for output in graph.output:
            output.name = renamed.get(output.name, output.name)


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
