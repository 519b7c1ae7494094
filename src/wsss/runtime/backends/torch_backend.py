"""Graphs run by torch, on a CPU or a GPU: what runs a bundle where onnxruntime is not installed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch

from ...errors import ArtifactError, MissingDependencyError
from ..io.files import open_regular
from .contract import (
    Array,
    GraphDescription,
    TensorSpec,
    axis_sizes,
    check_inputs,
    closed,
    one_line,
)
from .torch_graph import Placement, Plan, Planner
from .torch_node import DTYPES

OPSETS = range(18, 21)
"""Versions of the ONNX operators whose semantics are implemented."""


class TorchGraph:
    """A graph that torch runs; several threads may run it at once."""

    def __init__(self, plan: Plan, description: GraphDescription) -> None:
        self._plan: Plan | None = plan
        self._description = description
        self._placement = Placement(torch.device(description.device))

    def describe(self) -> GraphDescription:
        """Inputs, outputs and where it runs."""
        return self._description

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Compute outputs, as `OpenGraph.run` says."""
        plan = self._plan
        if plan is None:
            raise closed()
        check_inputs(self._description, inputs, outputs)
        with torch.inference_mode():
            results = plan.run({name: self._tensor(array) for name, array in inputs.items()})
            named = dict(zip(plan.outputs, results, strict=True))
            wanted = plan.outputs if outputs is None else outputs
            # Copies, because an output may be an input, or a constant of the graph.
            return {name: named[name].to("cpu", copy=True).numpy() for name in wanted}

    def close(self) -> None:
        """Give memory back."""
        self._plan = None
        if self._description.device == "cuda":
            torch.cuda.empty_cache()

    def _tensor(self, array: Array) -> torch.Tensor:
        # Writable, or torch warns; nothing writes to it.
        values = np.require(array, requirements=["C_CONTIGUOUS", "WRITEABLE"])
        return self._placement.first(torch.from_numpy(values))


def open_torch(
    path: Path, *, device: Literal["cpu", "cuda"] = "cpu", threads: int | None = None
) -> TorchGraph:
    """Open an ONNX file.

    Args:
        threads: that compute on the CPU, for the whole process, since torch has one number; None
            leaves it as it is.

    Raises:
        DataError: no file that can be read.
        ArtifactError: a damaged one, or one with operators, attributes or types that are not
            implemented.
        MissingDependencyError: cuda was asked for, and this torch finds no device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError(
            "torch finds no CUDA device: install a CUDA build of torch, or choose the device cpu"
        )
    graph = _read(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [_spec(value, path, value.name in constants) for value in graph.input]
    inputs.sort(key=lambda spec: spec.is_optional)
    outputs = tuple(_spec(value, path) for value in graph.output)
    description = GraphDescription("torch", device, tuple(inputs), outputs)
    plan = Planner(graph, str(path), torch.device(device)).plan(graph)
    if threads is not None:
        torch.set_num_threads(threads)
    return TorchGraph(plan, description)


def has_cuda() -> bool:
    """Whether torch can compute on a GPU here."""
    return torch.cuda.is_available()


def _read(path: Path) -> onnx.ModelProto:
    """The model in a file.

    Raises:
        DataError: no file that can be read.
        ArtifactError: it is none, or its operators are of a version that is not implemented.
    """
    open_regular(path).close()
    try:
        # By path: a model whose weights lie in other files can be checked in no other way.
        onnx.checker.check_model(str(path))
        model = onnx.load(path)
    except MemoryError:
        raise
    except Exception as error:
        raise ArtifactError(
            f"{path} is no ONNX graph that can run: {one_line(error)}; export it again"
        ) from error
    versions = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    if not versions or versions[0] not in OPSETS:
        raise ArtifactError(
            f"{path} is written for opset {versions[0] if versions else 'none'}, the torch backend "
            f"takes {OPSETS[0]} to {OPSETS[-1]}: export it again, or use the backend onnxruntime"
        )
    return model


def _spec(value: onnx.ValueInfoProto, path: Path, is_optional: bool = False) -> TensorSpec:
    kind = value.type.tensor_type
    if kind.elem_type not in DTYPES:
        name = onnx.TensorProto.DataType.Name(kind.elem_type)
        raise ArtifactError(
            f"{path}: `{value.name}` has the type {name}, which the torch backend does not take"
        )
    sizes = (
        axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in kind.shape.dim
    )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return TensorSpec(value.name, dtype, axis_sizes(value.name, sizes), is_optional)
