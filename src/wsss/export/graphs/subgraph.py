"""Changes to graphs: a network put into a larger one, a part taken out, a limit on sizes.

A server has no limit on the size of images of its own. The tensor that a request brings passes
through a Reshape to its own shape. A larger or empty one is asked into a shape that it does not
fill, so that the run ends there, with the name of the node in the message, before anything is
computed. ONNX has no operator that asserts.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
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


def limit_sizes(model: onnx.ModelProto, max_pixels: int) -> None:
    """Let a graph refuse images, and maps of them, that are empty or have more pixels or cells.

    Args:
        model: every input with two axes that vary beside the batch gets the limit.
    """
    nodes: list[onnx.NodeProto] = []
    graph = Builder(nodes, [], "size_limit/")
    for value in model.graph.input:
        shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        spatial = [axis for axis, size in enumerate(shape) if axis and not size]
        if len(spatial) == 2:
            _rename(model.graph, value.name, f"{value.name}/limited")
            _add_limit(graph, value.name, shape, spatial[0], max_pixels)
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *kept])
    model.graph.initializer.extend(graph.constants)


def _add_limit(graph: Builder, name: str, shape: list[int], first: int, max_pixels: int) -> None:
    """Nodes from a tensor to its limited self; its varying axes are `first` and the next one."""
    whole = graph("Shape", name)
    height = graph("Shape", name, start=first, end=first + 1)
    width = graph("Shape", name, start=first + 1, end=first + 2)
    pixels = graph("Mul", height, width)
    has_some = graph("GreaterOrEqual", pixels, graph.integers(1))
    fits = graph("And", has_some, graph("LessOrEqual", pixels, graph.integers(max_pixels)))
    # Of another number of elements than what does not fit: it shows the limit in the message.
    largest = np.array(shape, np.int64)
    largest[[0, first, first + 1]] = 1, 1, max_pixels
    asked = graph("Where", fits, whole, graph.constant(largest))
    graph("Reshape", name, asked, output=f"{name}/limited")
    graph.nodes[-1].name = f"{name}_must_have_1_to_{max_pixels}_pixels"


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let all readers of a value, also those in subgraphs, read another one."""
    for node in graph.node:
        for place, value in enumerate(node.input):
            if value == old:
                node.input[place] = new
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename(attribute.g, old, new)
