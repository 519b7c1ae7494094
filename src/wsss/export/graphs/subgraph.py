"""Putting a traced network into a larger graph, once or often, with one copy of its weights."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx

from .builder import Builder


def add_network(
    graph: Builder, name: str, model: onnx.ModelProto, pixels: str, place: str
) -> dict[str, str]:
    """Append the nodes of a network.

    Args:
        name: of the network; calls with one name share their weights.
        model: with one input and no subgraphs.
        pixels: tensor that becomes its input.
        place: of these nodes, unique in the graph, such as `cam/scale_0.5`.

    Returns:
        Output name in the model -> tensor in the graph.
    """
    known = {tensor.name for tensor in graph.constants}
    renamed = {model.graph.input[0].name: pixels}
    for tensor in model.graph.initializer:
        shared = f"{name}/{tensor.name}"
        renamed[tensor.name] = shared
        if shared not in known:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = shared
            graph.constants.append(copy)
    for node in model.graph.node:
        copy_node = onnx.NodeProto()
        copy_node.CopyFrom(node)
        copy_node.name = f"{place}/{node.name}"
        for index, value in enumerate(node.input):
            copy_node.input[index] = renamed[value] if value else ""
        for index, value in enumerate(node.output):
            renamed[value] = copy_node.output[index] = f"{place}/{value}" if value else ""
        graph.nodes.append(copy_node)
    return {output.name: renamed[output.name] for output in model.graph.output}


def drop_defaults(model: onnx.ModelProto) -> None:
    """Make every input of a graph required: for TensorRT an input with a default is a constant,
    and Triton's ONNX Runtime backend refuses it in a model that takes batches."""
    inputs = {value.name for value in model.graph.input}
    for place in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[place].name in inputs:
            del model.graph.initializer[place]


def keep_outputs(
    model: onnx.ModelProto, names: Collection[str], constants: Sequence[onnx.TensorProto] = ()
) -> None:
    """Drop the other outputs of a model, and what none of these needs.

    Args:
        constants: each takes the place of the nodes that compute the tensor of its name.
    """
    graph, given = model.graph, {tensor.name for tensor in constants}
    nodes = [node for node in graph.node if given.isdisjoint(node.output)]
    nodes = needed_nodes(nodes, names)
    kept = needed_constants([*graph.initializer, *constants], nodes)
    outputs = [value for value in graph.output if value.name in names]
    # By way of a new graph: nodes and constants are parts of the old one.
    graph.CopyFrom(onnx.helper.make_graph(nodes, graph.name, graph.input, outputs, kept))


def needed_nodes(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """Those that some output depends on, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= set(node.input) | _captured(node)
    return kept[::-1]


def needed_constants(
    constants: Sequence[onnx.TensorProto], nodes: Sequence[onnx.NodeProto]
) -> list[onnx.TensorProto]:
    """Those that some node reads."""
    read = {value for node in nodes for value in (*node.input, *_captured(node))}
    return [tensor for tensor in constants if tensor.name in read]


def _captured(node: onnx.NodeProto) -> set[str]:
    """Names that the subgraphs of a node read; some are their own."""
    names: set[str] = set()
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                names |= set(inner.input) | _captured(inner)
            names |= {output.name for output in attribute.g.output}
    return names


def values_of(nodes: Sequence[onnx.NodeProto]) -> Mapping[str, onnx.NodeProto]:
    """Tensor -> the node that computes it."""
    return {value: node for node in nodes for value in node.output if value}
