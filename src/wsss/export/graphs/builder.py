"""Writing ONNX graphs by hand: nodes and constants, appended with names of their own."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 20, 10
"""Of every graph we write: inside of what TensorRT 10 and onnxruntime 1.20 take."""


class Builder:
    """Appends nodes and constants; calls return the name of the tensor they add."""

    def __init__(
        self, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], prefix: str
    ) -> None:
        self.nodes, self.constants, self.prefix = nodes, constants, prefix

    def __call__(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{self.prefix}{kind}_{len(self.nodes)}"
        name = f"{self.prefix}node_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name, **attributes))
        return output

    def split(self, vector: str, count: int) -> list[str]:
        """The elements of a vector, as vectors of length 1."""
        stem = f"{self.prefix}Split_{len(self.nodes)}"
        parts = [f"{stem}_{index}" for index in range(count)]
        node = helper.make_node("Split", [vector], parts, stem, axis=0, num_outputs=count)
        self.nodes.append(node)
        return parts

    def constant(self, values: NDArray[Any]) -> str:
        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def number(self, value: float) -> str:
        """A float32 without axes, as some operators want their bounds."""
        return self.constant(np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def floats(self, *values: float) -> str:
        return self.constant(np.array(values, dtype=np.float32))
