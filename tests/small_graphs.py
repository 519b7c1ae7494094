"""ONNX models of a few nodes, for tests of whatever reads them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper


def value(name: str, dtype: object, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
    """A named tensor; unknown sizes are names or None."""
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, number, list(shape))


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 20,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model; a constant that is also an input is its default."""
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    versions = {"": opset, **dict.fromkeys(domains, 1)}
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def saved(made: onnx.ModelProto, folder: Path) -> Path:
    """The model as a file."""
    path = folder / "graph.onnx"
    onnx.save(made, path)
    return path
