"""A limit on the size of images, inside of a graph: a server has none of its own.

The tensor that a request brings passes through a Reshape to its own shape. A larger or empty one
is asked into a shape that it does not fill, so that the run ends there, with the name of the node
in the message, before anything is computed. ONNX has no operator that asserts.
"""

import numpy as np
import onnx

from ..graphs.builder import Builder


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
