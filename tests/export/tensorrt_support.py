"""What TensorRT's documentation says against a graph, found without TensorRT.

`tensorrt_operators.json` is our extract of that documentation, with the version it speaks of. A
graph without findings may still be refused: not every limit is written down, and nothing here ran.
"""

import json
from collections import ChainMap
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper, shape_inference

EXTRACT = json.loads(Path(__file__).with_name("tensorrt_operators.json").read_text("utf-8"))
"""The documented operators; its head explains the fields."""
TYPES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.BOOL: "BOOL",
}
"""ONNX's types -> those of the documentation; it has no other that onnxruntime's CPU also has."""


def unsupported(model: onnx.ModelProto) -> list[str]:
    """Every reason, known from the documentation, for TensorRT to refuse a model.

    Operators, types and restrictions are checked in the graph and in the bodies of Loop and If. A
    tensor whose type cannot be inferred is a finding too: nothing is passed unseen.
    """
    findings = [f"function `{function.name}` is not checked" for function in model.functions]
    opset = next((entry.version for entry in model.opset_import if not entry.domain), 0)
    first, last = EXTRACT["opsets"]
    if not first <= opset <= last:
        findings.append(f"opset {opset} is not in {first} to {last}")
    inferred = shape_inference.infer_shapes(model, data_prop=True)
    graph = inferred.graph
    # An initializer under the name of an input is its default; TensorRT takes it as a constant.
    defaults = {tensor.name for tensor in graph.initializer}
    boundary = {value.name for value in graph.input} - defaults
    scope = _Scope(opset, frozenset(boundary), frozenset(value.name for value in graph.output))
    scope.check(graph)
    return findings + scope.findings


@dataclass
class _Scope:
    """A graph and those around it.

    Attributes:
        inputs, outputs: of the network.
        kinds: tensor -> ONNX type; shapes: tensor -> axes, None for an unknown length.
        constants: tensors known when an engine is built; with their values where a file has them.
        literals: of those, initializers and results of Constant nodes.
    """

    opset: int
    inputs: frozenset[str]
    outputs: frozenset[str]
    findings: list[str] = field(default_factory=list)
    kinds: ChainMap = field(default_factory=ChainMap)
    shapes: ChainMap = field(default_factory=ChainMap)
    constants: ChainMap = field(default_factory=ChainMap)
    literals: ChainMap = field(default_factory=ChainMap)

    def check(self, graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.value_info, *graph.output):
            self._declare(value)
        for tensor in graph.initializer:
            self.kinds[tensor.name], self.shapes[tensor.name] = tensor.data_type, list(tensor.dims)
            self.constants[tensor.name] = self.literals[tensor.name] = numpy_helper.to_array(tensor)
        for node in graph.node:
            _Check(self, node).run()
            self._fold(node)
        produced = {name for node in graph.node for name in node.output if name}
        for name in sorted(produced.union(value.name for value in graph.input)):
            kind = self.kinds.get(name, TensorProto.UNDEFINED)
            if kind not in TYPES:
                told = TensorProto.DataType.Name(kind) if kind else "of unknown type"
                self.findings.append(f"tensor `{name}` is {told}")

    def inner(self) -> "_Scope":
        """The scope of a body, which sees the tensors around it."""
        maps = (self.kinds, self.shapes, self.constants, self.literals)
        return _Scope(
            self.opset,
            self.inputs,
            self.outputs,
            self.findings,
            *(each.new_child() for each in maps),
        )

    def _declare(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        if kind.elem_type:
            self.kinds[value.name] = kind.elem_type
        if kind.HasField("shape"):
            self.shapes[value.name] = [
                axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim
            ]

    def _fold(self, node: onnx.NodeProto) -> None:
        """Mark results that TensorRT knows when it builds."""
        has_body = any(attribute.type == AttributeProto.GRAPH for attribute in node.attribute)
        fixed_shape = node.op_type == "Shape" and None not in self.shapes.get(node.input[0], [None])
        names = [name for name in node.input if name]
        if node.op_type == "Constant":
            for attribute in node.attribute:
                value = helper.get_attribute_value(attribute)
                tensor = isinstance(value, onnx.TensorProto)
                array = numpy_helper.to_array(value) if tensor else np.array(value)
                self.constants[node.output[0]] = self.literals[node.output[0]] = array
        elif fixed_shape or (names and not has_body and all(n in self.constants for n in names)):
            self.constants.update(dict.fromkeys(node.output))


class _Check:
    """One node against its row of the extract."""

    def __init__(self, scope: _Scope, node: onnx.NodeProto) -> None:
        self.scope, self.node = scope, node
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.place = f"{node.op_type} '{node.name or node.output[0]}'"

    def run(self) -> None:
        node = self.node
        row = EXTRACT["operators"].get(node.op_type)
        if node.domain not in ("", "ai.onnx"):
            self.tell(f"domain {node.domain} is not supported")
        elif node.op_type in EXTRACT["unsupported"]:
            self.tell("is not supported")
        elif row is None:
            self.tell("is not in the extract: look it up and add it")
        else:
            self.schema = onnx.defs.get_schema(node.op_type, self.scope.opset, "")
            for rule, value in row.items():
                getattr(self, f"rule_{rule}")(value, row)
            getattr(self, f"special_{node.op_type.lower()}", lambda: None)()
        for value in self.attributes.values():
            if isinstance(value, onnx.GraphProto):
                self.scope.inner().check(value)

    def tell(self, text: str) -> None:
        self.scope.findings.append(f"{self.place} {text}")

    def input(self, wanted: str) -> str:
        """Name of the tensor at a named input; empty where it is left out."""
        for position, formal in enumerate(self.schema.inputs):
            if formal.name == wanted and position < len(self.node.input):
                return str(self.node.input[position])
        return ""

    def given(self, names: list[str]) -> list[tuple[str, str]]:
        """(input of the operator, tensor), of those inputs that are given."""
        return [(name, tensor) for name in names if (tensor := self.input(name))]

    def rule_types(self, allowed: list[str], row: dict) -> None:
        for name in self._typed(row):
            kind = TYPES.get(self.scope.kinds.get(name, TensorProto.UNDEFINED))
            if kind is not None and kind not in allowed:
                self.tell(f"on {kind} `{name}`, supported are {', '.join(allowed)}")

    def _typed(self, row: dict) -> list[str]:
        if "inputs" in row:
            return [tensor for _, tensor in self.given(row["inputs"])]
        formals = [*self.schema.inputs, *self.schema.outputs]
        variables = row.get("typed", [formals[0].type_str])
        bound = _bound(self.schema.inputs, self.node.input)
        bound += _bound(self.schema.outputs, self.node.output)
        return list(dict.fromkeys(name for formal, name in bound if formal.type_str in variables))

    def rule_typed(self, *_: object) -> None:
        """Read by `rule_types`."""

    rule_inputs = rule_note = rule_typed

    def rule_attributes(self, allowed: dict, row: dict) -> None:
        for name, values in allowed.items():
            found = self._attribute(name)
            if found is not None and found not in values:
                self.tell(f"has {name} {found}, supported are {', '.join(map(str, values))}")

    def _attribute(self, name: str) -> object:
        """As given, or the operator's default; None if this opset does not have it."""
        value = self.attributes.get(name)
        if value is None and name in self.schema.attributes:
            default = self.schema.attributes[name].default_value
            value = helper.get_attribute_value(default) if default.type else None
        return value.decode() if isinstance(value, bytes) else value

    def rule_forbidden(self, names: list[str], row: dict) -> None:
        for name in set(names) & set(self.attributes):
            self.tell(f"has {name}, which is not supported")

    def rule_ones(self, names: list[str], row: dict) -> None:
        for name in names:
            if any(number != 1 for number in self.attributes.get(name, ())):
                self.tell(f"has {name} {list(self.attributes[name])}, supported are ones")

    def rule_spatial(self, counts: list[int], row: dict) -> None:
        found = len(self.attributes.get("kernel_shape", ()))
        if found not in counts:
            self.tell(f"has {found} spatial axes, supported are {counts}")

    def rule_outputs(self, count: int, row: dict) -> None:
        for name in filter(None, self.node.output[count:]):
            self.tell(f"gives `{name}`, supported are its first {count} outputs")

    def rule_rank(self, ranks: dict, row: dict) -> None:
        for name, tensor in self.given(list(ranks)):
            shape = self.scope.shapes.get(tensor)
            if shape is None or len(shape) not in ranks[name]:
                self.tell(f"takes `{tensor}` of shape {shape}, supported are {ranks[name]} axes")

    def rule_initializer(self, names: list[str], row: dict) -> None:
        for name, tensor in self.given(names):
            if tensor not in self.scope.literals:
                self.tell(f"has {name} `{tensor}`, which must be an initializer")

    def rule_constant(self, names: list[str], row: dict) -> None:
        for name, tensor in self.given(names):
            if tensor not in self.scope.constants:
                self.tell(f"has {name} `{tensor}`, which must be constant")

    def rule_zero(self, names: list[str], row: dict) -> None:
        for name, tensor in self.given(names):
            if np.any(self.scope.literals.get(tensor, 1)):
                self.tell(f"has {name} `{tensor}`, which must be a constant of zeros")

    def rule_below(self, limits: dict, row: dict) -> None:
        for name, tensor in self.given(list(limits)):
            value = self.scope.literals.get(tensor)
            if value is None or np.any(value >= limits[name]):
                self.tell(f"has {name} `{tensor}`, which must be a constant below {limits[name]}")

    def special_cast(self) -> None:
        """Types at the border of the network only, to or from which one casts at once."""
        (source,), (target,) = self.node.input, self.node.output
        limited = EXTRACT["boundary_types"]
        if self._kind(source) in limited and source not in self.scope.inputs:
            self.tell(f"from {self._kind(source)} `{source}`, which is no input of the network")
        if self._kind(target) in limited and target not in self.scope.outputs:
            self.tell(f"to {self._kind(target)} `{target}`, which is no output of the network")

    def _kind(self, name: str) -> str | None:
        return TYPES.get(self.scope.kinds.get(name))

    def special_mod(self) -> None:
        kind = self._kind(self.node.input[0])
        if not self.attributes.get("fmod") and kind not in ("INT32", "INT64"):
            self.tell(f"without fmod takes whole numbers, found {kind} `{self.node.input[0]}`")

    def special_squeeze(self) -> None:
        shape = self.scope.shapes.get(self.node.input[0])
        without = self.scope.opset >= 13 and not self.input("axes")
        if without and (shape is None or None in shape):
            self.tell(f"without axes takes a fixed shape, found {shape}")

    def special_resize(self) -> None:
        axes = self.attributes.get("axes")
        shape = self.scope.shapes.get(self.node.input[0])
        if axes and self.input("scales") and (shape is None or list(axes) != [*range(len(shape))]):
            self.tell(f"scales axes {list(axes)}, supported are all of them in order")

    def special_if(self) -> None:
        branches = [self.attributes["then_branch"], self.attributes["else_branch"]]
        for first, second in zip(*(branch.output for branch in branches), strict=True):
            if first.name == second.name:
                self.tell(f"has two branches that give `{first.name}`: the names must differ")
            ranks = [len(value.type.tensor_type.shape.dim) for value in (first, second)]
            if ranks[0] != ranks[1]:
                self.tell(f"gives `{first.name}` of {ranks[0]} axes or of {ranks[1]}")

    def special_loop(self) -> None:
        body, limit = self.attributes["body"], self.node.input[0]
        carried = len(self.node.input) - 2
        if len(body.output) > carried + 1:
            # The condition that a body passes on unchanged never ends the loop early.
            known = {body.input[1].name} | {tensor.name for tensor in body.initializer}
            known |= {n.output[0] for n in body.node if n.op_type == "Constant"}
            known |= {
                n.output[0] for n in body.node if n.op_type == "Identity" and n.input[0] in known
            }
            if limit not in self.scope.constants or body.output[0].name not in known:
                self.tell("has scan outputs of a length that is known only when it runs")
        for index, name in enumerate(self.node.input[2:]):
            before, after = body.input[2 + index].name, body.output[1 + index].name
            shapes = [self.scope.shapes.get(name), *self._carried(body, before, after)]
            if _contradict([shape for shape in shapes if shape is not None]):
                self.tell(f"carries `{before}`, whose shape changes: {shapes}")

    def _carried(self, body: onnx.GraphProto, before: str, after: str) -> list[list | None]:
        """Shapes of a carried tensor in a body, first as declared, then as one step makes it."""
        inner = self.scope.inner()
        for value in (*body.input, *body.value_info, *body.output):
            inner._declare(value)
        declared = [inner.shapes.get(before), inner.shapes.get(after)]
        # One step from the shapes that go in, as a graph of its own.
        starts = dict(zip((v.name for v in body.input[2:]), self.node.input[2:], strict=True))
        own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        read = {name for node in body.node for name in node.input if name} - own
        read -= {name for node in body.node for name in node.output}
        inputs = [
            helper.make_tensor_value_info(
                name, inner.kinds.get(name, 0), inner.shapes.get(starts.get(name, name))
            )
            for name in sorted({value.name for value in body.input} | (read - set(inner.literals)))
        ]
        known = [numpy_helper.from_array(inner.literals[n], n) for n in read & set(inner.literals)]
        output = helper.make_tensor_value_info(after, inner.kinds.get(after, 0), None)
        step = helper.make_graph(body.node, "step", inputs, [output], [*body.initializer, *known])
        opsets = [helper.make_opsetid("", self.scope.opset)]
        stepped = shape_inference.infer_shapes(
            helper.make_model(step, opset_imports=opsets), data_prop=True
        )
        inner._declare(stepped.graph.output[0])
        return [*declared, inner.shapes.get(after)]


def _bound(formals: list, names: list[str]) -> list[tuple]:
    """(formal, tensor); the last formal takes all that are left."""
    if not formals:
        return []
    padded = [*formals, *[formals[-1]] * max(0, len(names) - len(formals))]
    return [(formal, name) for formal, name in zip(padded, names, strict=False) if name]


def _contradict(shapes: list[list[int | None]]) -> bool:
    """Whether known lengths, or numbers of axes, differ."""
    if len({len(shape) for shape in shapes}) > 1:
        return True
    return any(len(set(axis) - {None}) > 1 for axis in zip(*shapes, strict=True))
