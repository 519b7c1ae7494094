"""Graphs computed by the reference evaluator of the onnx package: slow, and everywhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx.reference import ReferenceEvaluator

from .contract import Array, GraphDescription, TensorSpec, axis_sizes, check_inputs, run_failure


class ReferenceGraph:
    """See `OpenGraph`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._evaluator = ReferenceEvaluator(model)
        inputs, outputs = (
            tuple(_spec(value) for value in side)
            for side in (model.graph.input, model.graph.output)
        )
        self._description = GraphDescription("reference", "cpu", inputs, outputs)

    def describe(self) -> GraphDescription:
        return self._description

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        check_inputs(self._description, inputs, outputs)
        names = list(outputs or (spec.name for spec in self._description.outputs))
        try:
            return dict(zip(names, self._evaluator.run(names, dict(inputs)), strict=True))
        except Exception as error:
            raise run_failure("the reference evaluator", error) from error

    def close(self) -> None:
        pass


def open_reference(
    path: Path, *, device: str, threads: int | None, allow_host_code: bool
) -> ReferenceGraph:
    """See `OpenFile`."""
    return ReferenceGraph(onnx.load(path, load_external_data=False))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    axes = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return TensorSpec(value.name, dtype, axis_sizes(value.name, axes))
