"""Whether an ONNX file is one that we could have written, found out before anything runs it.

Neither onnx nor onnxruntime refuses every hostile graph: onnxruntime 1.31 reads tensors through
hard links, `onnx.load` lets sparse ones out of the folder, and the checker accepts functions and
operators that it does not know. So the structure is walked here first, then onnx has its say.
"""

from collections import ChainMap
from collections.abc import Iterator, Sequence
from typing import Any

from ...errors import ArtifactError, MissingDependencyError, one_line, short_repr
from ..backends.contract import TensorSpec
from .graph_tensors import (
    MAX_ELEMENTS,
    MAX_RANK,
    OPSETS,
    TYPES,
    Constants,
    GraphFaultError,
    asked_elements,
    check_tensor,
    check_value,
    constant_of,
    integers_of,
)
from .manifest import GraphEntry

IR_VERSIONS = (8, 10)
"""First and last; the earliest ir version that knows opset 18, and the latest that we write."""
MAX_NODES, MAX_DEPTH = 200_000, 8
MAX_TRIPS = 100_000
"""Of a loop; a walk takes half as many as it has steps."""

_DOMAINS = ("", "ai.onnx")
"""Two names of the standard operators; anything else is code that we do not bring along."""
_RANGES = {"axis": (-MAX_RANK, MAX_RANK - 1), "batch_dims": (0, MAX_RANK - 1)}
"""Of attributes; beyond them LayerNormalization (onnx 1.23) and GatherND (onnxruntime 1.31 too) end
the process instead of refusing the graph."""

_FOREIGN = (
    (b"PK", "a zip archive"),
    *((bytes((0x80, protocol)), "a pickle") for protocol in range(2, 6)),
    (b"\x1f\x8b", "a gzip archive"),
)


def check_graph(data: bytes, name: str, expected: GraphEntry | None = None) -> None:
    """Refuse a graph that should not be given to an engine; nothing in it is executed.

    The data of every tensor must lie inside the file: external data is refused wherever the
    format allows it, also inside of its folder.

    Args:
        data: the content of an ONNX file, at most `MAX_GRAPH_BYTES`.
        name: the file, for messages.
        expected: what the manifest says of inputs and outputs, by name; not compared if absent.

    Raises:
        ArtifactError: damaged, hostile, beyond a limit of this module or not as expected.
        MissingDependencyError: onnx is not installed.
    """
    try:
        model = _parse(data)
        _refuse_external_data(model)
        _check_model(model)
        _Structure(model.opset_import[0].version).check(model.graph, ChainMap())
        _run_checker(data)
        if expected:
            _compare(model.graph, expected)
    except GraphFaultError as fault:
        remedy = "export it again, or take it from a source that you trust"
        raise ArtifactError(f"graph {name!r} {fault}: {remedy}") from None


def _parse(data: bytes) -> Any:
    if not data:
        raise GraphFaultError("is empty (0 bytes), expected an ONNX graph")
    onnx = _onnx()
    try:
        model = onnx.ModelProto.FromString(data)
    # The decoder is not ours: whatever it raises, nested too deep included, the file is at fault.
    except Exception:
        raise GraphFaultError(f"is {_looks_like(data)}, expected an ONNX graph") from None
    if not (model.graph.node and model.graph.output):  # most bytes decode to unknown fields
        raise GraphFaultError(f"is {_looks_like(data)}, it has no nodes or no outputs")
    return model


def _onnx() -> Any:
    try:
        import onnx
        import onnx.checker
    except ImportError:
        raise MissingDependencyError(
            "onnx is not installed, it checks graphs before they run: pip install onnx"
        ) from None
    return onnx


def _looks_like(data: bytes) -> str:
    for start, kind in _FOREIGN:
        if data.startswith(start):
            return kind
    head = data[:256]
    is_text = all(32 <= byte < 127 or byte in b"\t\n\r" for byte in head)
    return "text" if is_text else "damaged or cut short"


def _refuse_external_data(model: Any) -> None:
    for tensor in _tensors(model):
        if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            raise GraphFaultError(
                f"keeps tensor {short_repr(tensor.name)} in another file, "
                f"{short_repr(entries.get('location', ''))}, expected all data inside of the graph"
            )


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor below a message, in any field that this or a later onnx defines."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for item in (value,) if hasattr(value, "ListFields") else value:
            if field.message_type.full_name == "onnx.TensorProto":
                yield item
            else:
                yield from _tensors(item)


def _check_model(model: Any) -> None:
    """What stands beside the graph."""
    if model.functions:
        raise GraphFaultError(
            f"defines the function {short_repr(model.functions[0].name)}, "
            "expected standard operators"
        )
    if model.training_info:
        raise GraphFaultError("holds training information, expected a graph for inference")
    first, last = IR_VERSIONS
    if not first <= model.ir_version <= last:
        raise GraphFaultError(f"has ir version {model.ir_version}, expected {first} to {last}")
    domains = [opset.domain for opset in model.opset_import]
    for domain in domains:
        if domain not in _DOMAINS:
            raise GraphFaultError(
                f"imports operators of {short_repr(domain)}, expected standard ones"
            )
    if len(domains) != 1:
        raise GraphFaultError(f"imports standard operators {len(domains)} times, expected once")
    first, last = OPSETS
    opset = model.opset_import[0].version
    if not first <= opset <= last:
        raise GraphFaultError(f"has opset {opset}, expected {first} to {last}")


class _Structure:
    """Walks a graph in the order of its nodes, with the names that each of them can see."""

    def __init__(self, opset: int) -> None:
        self._opset, self._num_nodes = opset, 0

    def check(self, graph: Any, outer: Constants, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise GraphFaultError(f"nests graphs deeper than {MAX_DEPTH} levels")
        self._num_nodes += len(graph.node)
        if self._num_nodes > MAX_NODES:
            raise GraphFaultError(
                f"has {self._num_nodes} nodes or more, expected at most {MAX_NODES}"
            )
        if graph.sparse_initializer:
            raise GraphFaultError("holds a sparse tensor, expected dense ones")
        scope = outer.new_child()
        for value in graph.input:
            _define(scope, value.name)
        defaults = set(scope.maps[0])
        for tensor in graph.initializer:
            check_tensor(tensor)
            if tensor.name in defaults:  # an input may have a default, but only one
                defaults.remove(tensor.name)
            else:
                _define(scope, tensor.name)
            scope[tensor.name] = integers_of(tensor)
        for node in graph.node:
            self._check_node(node, scope, depth)
        own = set(scope.maps[0])
        for value in graph.output:
            if value.name not in own:
                raise GraphFaultError(
                    f"lists the output {short_repr(value.name)} twice or without a source"
                )
            own.remove(value.name)
        for value in (*graph.input, *graph.output, *graph.value_info):
            check_value(value)

    def _check_node(self, node: Any, scope: Constants, depth: int) -> None:
        where = f"node {short_repr(node.name)} ({short_repr(node.op_type)})"
        if node.domain not in _DOMAINS:
            raise GraphFaultError(
                f"has {where} of domain {short_repr(node.domain)}, expected standard operators"
            )
        for name in node.input:
            if name and name not in scope:
                raise GraphFaultError(
                    f"has {where} that takes {short_repr(name)}, which nothing before it gives: "
                    "cyclic, unsorted or cut"
                )
        if "" in node.input:
            self._check_gaps(node, where)
        for attribute in node.attribute:
            _check_number(attribute, where, len(node.output))
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise GraphFaultError(f"has {where} with a sparse tensor, expected dense ones")
            for tensor in (*_single(attribute, "t"), *attribute.tensors):
                check_tensor(tensor)
            for graph in (*_single(attribute, "g"), *attribute.graphs):
                self.check(graph, scope, depth + 1)
        if node.op_type == "Loop":
            _check_trips(node, where, scope)
        asked = asked_elements(node, scope)
        if asked > MAX_ELEMENTS:
            raise GraphFaultError(
                f"has {where} that asks for {asked} elements, expected at most {MAX_ELEMENTS}"
            )
        for name in node.output:
            if name:
                _define(scope, name)
                scope[name] = constant_of(node)

    def _check_gaps(self, node: Any, where: str) -> None:
        """Inputs that are left out must be optional: onnxruntime 1.31 ends the process over a gap
        among those of an operator that takes any number, and the checker of onnx allows it."""
        defs = _onnx().defs
        try:
            known = defs.get_schema(node.op_type, self._opset, "").inputs
        except defs.SchemaError:
            return  # no operator, as the checker will say
        for place, name in enumerate(node.input):
            is_optional = known and (
                known[min(place, len(known) - 1)].option
                == defs.OpSchema.FormalParameterOption.Optional
            )
            if not name and not is_optional:
                raise GraphFaultError(
                    f"has {where} that leaves out input {place}, expected all that are not optional"
                )


def _check_trips(node: Any, where: str, scope: Constants) -> None:
    """A loop without a constant, sensible number of trips could run for ever."""
    trips = scope.get(node.input[0]) if node.input else None
    if trips is None or len(trips) != 1 or not 0 <= trips[0] <= MAX_TRIPS:
        raise GraphFaultError(
            f"has {where} of {'unknown' if trips is None else short_repr(list(trips))} trips, "
            f"expected a constant of at most {MAX_TRIPS}"
        )


def _check_number(attribute: Any, where: str, num_outputs: int) -> None:
    first, last = _RANGES.get(attribute.name, (attribute.i, attribute.i))
    # A Split with other outputs than it says ends the process, of onnx and of onnxruntime.
    if attribute.name == "num_outputs":
        first = last = num_outputs
    if not first <= attribute.i <= last:
        raise GraphFaultError(
            f"has {where} with {attribute.name} {attribute.i}, expected {first} to {last}"
        )


def _define(scope: Constants, name: str) -> None:
    # Also refused if an outer graph has it: onnx forbids that, engines differ in what they do.
    if name in scope:
        raise GraphFaultError(f"defines the name {short_repr(name)} twice")
    if not isinstance(name, str):  # protobuf gives bytes where they are no UTF-8
        raise GraphFaultError(f"defines the name {short_repr(name)}, expected text")
    scope[name] = None


def _single(message: Any, field: str) -> tuple[Any, ...]:
    return (getattr(message, field),) if message.HasField(field) else ()


def _run_checker(data: bytes) -> None:
    # The bytes that were walked, not the path: the file may have been replaced since. What the
    # path is needed for, external data, is refused already.
    try:
        _onnx().checker.check_model(data, full_check=True)
    # It has at least four types of exceptions, those of protobuf and of C++ included.
    except Exception as error:
        raise GraphFaultError(f"is refused by onnx ({one_line(error)})") from None


def _compare(graph: Any, expected: GraphEntry) -> None:
    defaults = {tensor.name for tensor in graph.initializer}
    _compare_side("input", [_spec(v, v.name in defaults) for v in graph.input], expected.inputs)
    _compare_side("output", [_spec(v, False) for v in graph.output], expected.outputs)


def _compare_side(side: str, found: Sequence[TensorSpec], wanted: Sequence[TensorSpec]) -> None:
    names = {spec.name for spec in wanted}
    for spec in found:
        if spec.name not in names:
            raise GraphFaultError(
                f"has the {side} {short_repr(spec.name)}, which bundle.json lacks"
            )
    given = {spec.name: spec for spec in found}
    for spec in wanted:
        if spec.name not in given:
            raise GraphFaultError(
                f"lacks the {side} {short_repr(spec.name)}, which bundle.json names"
            )
        if spec != given[spec.name]:
            raise GraphFaultError(
                f"has the {side} {short_repr(spec.name)} as {_text(given[spec.name])}, "
                f"expected by bundle.json: {_text(spec)}"
            )


def _spec(value: Any, is_optional: bool) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = TYPES.get(tensor.elem_type, (f"type {tensor.elem_type}", ""))[0]
    # An axis without a size or a name is given none, which no manifest may contain.
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
    return TensorSpec(value.name, dtype, tuple(shape), is_optional)


def _text(spec: TensorSpec) -> str:
    return f"{'optional ' * spec.is_optional}{spec.dtype} {short_repr(list(spec.shape))}"
