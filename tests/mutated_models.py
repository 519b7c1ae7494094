"""Bundles and checkpoints damaged at random: bytes, fields of headers, and the insides of graphs.

A digest tells of damage, not of intent, so most bundles are sealed again after the change.
"""

import itertools
import json
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper
from small_bundles import spec, write_bundle, write_manifest

from wsss.export.graphs.walk import walk_model
from wsss.runtime.bundle.graph_tensors import TYPES
from wsss.runtime.bundle.open import MANIFEST, file_entry, seal

_NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    64,
    255,
    65_536,
    2**31 - 1,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
    -(2**63),
)
_VALUES = (
    None,
    True,
    -1,
    0,
    2.5,
    2**40,
    10**40,
    "",
    "a\nb",
    "../x",
    "\udcff",
    [],
    {},
    [[]],
    [None],
)
_OPERATORS = sorted(
    {
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.domain == "" and schema.since_version <= 20 and not schema.deprecated
    }
)


def write_small_bundle(folder: Path) -> Path:
    """A valid bundle of three graphs; the largest is the walk."""
    write_bundle(folder)
    replace_graph(folder, "refine", walk_model(radius=2, steps=8))
    return folder


def replace_graph(folder: Path, name: str, model: onnx.ModelProto | bytes, **said: Any) -> None:
    """Put a graph into a bundle and seal it.

    Args:
        model: bytes need not be a graph; what the manifest says of inputs and outputs then stays,
            or is that of the walk.
        said: of the graph by the manifest, in place of what the model has.
    """
    path = folder / f"{name}.onnx"
    data = model if isinstance(model, bytes) else model.SerializeToString()
    path.write_bytes(data)
    manifest = _read(folder)
    if not isinstance(model, bytes):
        given = {tensor.name for tensor in model.graph.initializer}
        manifest["graphs"][name] = {
            "file": path.name,
            "precision": "fp32",
            "inputs": [_spec(value, value.name in given) for value in model.graph.input],
            "outputs": [_spec(value, False) for value in model.graph.output],
            **said,
        }
    manifest["files"][path.name] = file_entry(path)
    write_manifest(folder, manifest)


def _read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / MANIFEST).read_bytes()))


def _spec(value: onnx.ValueInfoProto, is_optional: bool) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dtype = TYPES.get(tensor.elem_type, ("float32", ""))[0]
    sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
    return spec(value.name, dtype, *sizes, is_optional=is_optional)


def write_mutated_bundle(chance: random.Random, folder: Path) -> str:
    """Make a bundle in an empty folder and damage it; tells how."""
    write_small_bundle(folder)
    how = chance.choices(
        ("manifest bytes", "manifest field", "stale graph", "graph bytes", "graph inside"),
        (1, 2, 1, 2, 6),
    )[0]
    name = chance.choice(("cam", "label", "refine"))
    path = folder / f"{name}.onnx"
    if how == "manifest bytes":
        (folder / MANIFEST).write_bytes(_bytes(chance, (folder / MANIFEST).read_bytes()))
    elif how == "manifest field":
        changed = _read(folder)
        change_field(chance, changed)
        (folder / MANIFEST).write_bytes(seal(changed))
    elif how == "stale graph":
        path.write_bytes(_bytes(chance, path.read_bytes()))
    elif how == "graph bytes":
        replace_graph(folder, name, _bytes(chance, path.read_bytes()))
    else:
        model = onnx.load(path)
        for _ in range(chance.randrange(1, 4)):
            chance.choice(_EDITS)(chance, model.graph)
        # Names that are no text cannot be in a manifest; what has them goes in as bytes.
        said_so = chance.random() < 0.7
        replace_graph(folder, name, model if said_so else model.SerializeToString())
    return how


def write_wrong_fields(folder: Path) -> Iterator[tuple[str, Path]]:
    """A sealed bundle for every field of the manifest, also inside of others, and every kind of
    value; with what was set."""
    manifest, numbers = _read(write_small_bundle(folder / "whole")), itertools.count()
    for place in _places(manifest, ()):
        for value in (*_VALUES, ...):
            changed = json.loads(json.dumps(manifest))
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            if value is ...:
                del inner[place[-1]]
            else:
                inner[place[-1]] = value
            path = folder / f"{next(numbers):04}"
            path.mkdir()
            for file in (folder / "whole").iterdir():
                (path / file.name).write_bytes(file.read_bytes())
            (path / MANIFEST).write_bytes(seal(changed))
            name = ".".join(map(str, place))
            yield f"{name} {'removed' if value is ... else f'= {value!r}'}", path


def _places(value: Any, above: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Keys that lead to each value; of a list the first."""
    keys = (
        list(value) if isinstance(value, dict) else [0] if isinstance(value, list) and value else []
    )
    for key in keys:
        yield (*above, key)
        yield from _places(value[key], (*above, key))


def change_field(chance: random.Random, content: Any) -> None:
    """Set, remove or add one value somewhere in a JSON-compatible object."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = chance.choice(keys) if keys else None
        inner = content[key] if key is not None else None
        if isinstance(inner, dict | list) and inner and chance.random() < 0.8:
            content = inner
            continue
        if isinstance(content, dict) and (key is None or chance.random() < 0.1):
            content["extra"] = chance.choice(_VALUES)
        elif key is None or (isinstance(content, list) and chance.random() < 0.2):
            content.append(chance.choice(_VALUES))
        elif chance.random() < 0.2:
            del content[key]
        else:
            content[key] = chance.choice((*_VALUES, [inner] * 2, {"a": inner}, str(inner)))
        return


def _bytes(chance: random.Random, data: bytes) -> bytes:
    """Flipped, overwritten, cut, or with a block moved."""
    changed = bytearray(data)
    kind = chance.randrange(4)
    if kind == 0:
        return data[: chance.randrange(len(data))]
    if kind == 1:
        start, target = chance.randrange(len(data)), chance.randrange(len(data))
        return data[:target] + data[start : start + chance.randrange(1, 100)] + data[target:]
    for _ in range(chance.choice((1, 2, 5, 20))):
        place = chance.randrange(len(data))
        changed[place] = (
            chance.randrange(256) if kind == 2 else changed[place] ^ 1 << chance.randrange(8)
        )
    return bytes(changed)


# --- the inside of graphs ---


def _change_attribute(chance: random.Random, graph: onnx.GraphProto) -> None:
    found = [attribute for node in graph.node for attribute in node.attribute]
    if not found:
        return
    attribute = chance.choice(found)
    if attribute.ints:
        attribute.ints[chance.randrange(len(attribute.ints))] = chance.choice(_NUMBERS)
    elif attribute.HasField("f"):
        attribute.f = chance.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))
    elif attribute.HasField("s"):
        attribute.s = chance.choice((b"", b"reflect", b"linear", b"\xff", b"a" * 1000))
    elif attribute.HasField("t"):
        _change_tensor(chance, attribute.t)
    elif attribute.HasField("g"):
        chance.choice(_EDITS)(chance, attribute.g)
    else:
        attribute.i = chance.choice(_NUMBERS)


def _change_operator(chance: random.Random, graph: onnx.GraphProto) -> None:
    if not graph.node:
        return
    node = chance.choice(graph.node)
    node.op_type = chance.choice(_OPERATORS)
    if chance.random() < 0.7:  # else the checker stops at the first attribute that is left
        del node.attribute[:]
        _give_attributes(chance, node)


def _change_inputs(chance: random.Random, graph: onnx.GraphProto) -> None:
    if not graph.node:
        return
    node = chance.choice(graph.node)
    names = [*_names(graph), ""]
    kind = chance.randrange(3)
    if kind == 0 or not node.input:
        node.input.append(chance.choice(names))
    elif kind == 1:
        node.input[chance.randrange(len(node.input))] = chance.choice(names)
    else:
        del node.input[chance.randrange(len(node.input))]


def _change_order(chance: random.Random, graph: onnx.GraphProto) -> None:
    if not graph.node:
        return
    place = chance.randrange(len(graph.node))
    node = onnx.NodeProto.FromString(graph.node[place].SerializeToString())
    del graph.node[place]
    if chance.random() < 0.5:
        graph.node.insert(chance.randrange(len(graph.node) + 1), node)


def _change_constant(chance: random.Random, graph: onnx.GraphProto) -> None:
    if graph.initializer:
        _change_tensor(chance, chance.choice(graph.initializer))


def _change_tensor(chance: random.Random, tensor: TensorProto) -> None:
    kind = chance.randrange(4)
    if kind == 0:
        del tensor.dims[:]
        tensor.dims.extend(
            chance.choice(((), (0,), (1, 1), (3,), (1, 3, 3), (9, 1), (2**31, 2**31)))
        )
    elif kind == 1:
        tensor.data_type = chance.choice((*TYPES, 8, 14, 16, 22, 99))
    elif kind == 2 and tensor.data_type == TensorProto.INT64 and tensor.raw_data:
        values = bytearray(tensor.raw_data)
        place = chance.randrange(len(values) // 8) * 8
        struct.pack_into("<q", values, place, chance.choice(_NUMBERS))
        tensor.raw_data = bytes(values)
    elif tensor.raw_data:
        tensor.raw_data = bytes(chance.randbytes(len(tensor.raw_data)))


def _change_value(chance: random.Random, graph: onnx.GraphProto) -> None:
    values = [*graph.input, *graph.output, *graph.value_info]
    if not values:
        return
    tensor = chance.choice(values).type.tensor_type
    if chance.random() < 0.4:
        tensor.elem_type = chance.choice((*TYPES, 8, 16))
    elif tensor.shape.dim and chance.random() < 0.7:
        dim = chance.choice(tensor.shape.dim)
        dim.dim_value = abs(chance.choice(_NUMBERS[:10]))
    else:
        tensor.shape.dim.add().dim_value = chance.choice((1, 2, 3))


def _add_node(chance: random.Random, graph: onnx.GraphProto) -> None:
    """One that nothing needs; engines look at it all the same."""
    place = chance.randrange(len(graph.node) + 1)
    before = [*(value.name for value in graph.input), *(each.name for each in graph.initializer)]
    before += [name for node in list(graph.node)[:place] for name in node.output]
    schema = onnx.defs.get_schema(chance.choice(_OPERATORS), 20, "")
    count = chance.randint(schema.min_input, min(schema.max_input, schema.min_input + 2))
    sources = [chance.choice(before) for _ in range(count)] if before else []
    node = helper.make_node(schema.name, sources, [f"added {len(graph.node)}"])
    _give_attributes(chance, node)
    if chance.random() < 0.3 and graph.output and graph.node:  # in the way of the result
        node.output[0], last = graph.output[0].name, chance.choice(graph.node)
        for index, name in enumerate(last.output):
            if name == node.output[0]:
                last.output[index] = "hidden"
    graph.node.insert(place, node)


def _give_attributes(chance: random.Random, node: onnx.NodeProto) -> None:
    """Those that the operator demands, and some of the others."""
    kinds = onnx.defs.OpSchema.AttrType
    made: Mapping[Any, Callable[[], Any]] = {
        kinds.INT: lambda: chance.choice(_NUMBERS),
        kinds.INTS: lambda: [chance.choice(_NUMBERS[:8]) for _ in range(chance.randrange(4))],
        kinds.FLOAT: lambda: chance.choice((0.0, 0.5, -1.0, 1e30)),
        kinds.FLOATS: lambda: [chance.random() for _ in range(3)],
        kinds.STRING: lambda: chance.choice(("", "linear", "constant", "SAME_UPPER", "sum")),
        kinds.STRINGS: lambda: ["Tanh"],
        kinds.TENSOR: lambda: helper.make_tensor("", TensorProto.FLOAT, [1], [1.0]),
    }
    for name, attribute in onnx.defs.get_schema(node.op_type, 20, "").attributes.items():
        if attribute.type in made and (attribute.required or chance.random() < 0.3):
            node.attribute.append(
                helper.make_attribute(
                    name, made[attribute.type](), attr_type=_number(attribute.type)
                )
            )


def _number(kind: Any) -> int:
    return int(onnx.AttributeProto.AttributeType.Value(kind.name))


def _names(graph: onnx.GraphProto) -> list[str]:
    names = [value.name for value in graph.input] + [each.name for each in graph.initializer]
    return names + [name for node in graph.node for name in node.output]


_EDITS: tuple[Callable[[random.Random, onnx.GraphProto], None], ...] = (
    _change_attribute,
    _change_attribute,
    _change_operator,
    _change_inputs,
    _change_order,
    _change_constant,
    _change_constant,
    _change_value,
    _add_node,
    _add_node,
)


# --- checkpoints ---


def mutated_checkpoint(chance: random.Random, data: bytes) -> bytes:
    """A safetensors file, damaged: 8 bytes of length, a JSON header, the tensors."""
    kind = chance.randrange(4)
    if kind == 0:
        return _bytes(chance, data)
    (length,) = struct.unpack_from("<Q", data)
    header, rest = data[8 : 8 + length], data[8 + length :]
    if kind == 1:  # text of the header alone
        header = _bytes(chance, header)
    else:
        fields = json.loads(header)
        if kind == 2:
            own = json.loads(fields["__metadata__"]["wsss"])
            change_field(chance, own)
            fields["__metadata__"]["wsss"] = json.dumps(own)
        else:
            change_field(chance, fields)
        header = json.dumps(fields).encode()
    return packed_checkpoint(header, rest)


def packed_checkpoint(header: bytes, rest: bytes, length: int | None = None) -> bytes:
    """A safetensors file of its parts; `length` may lie."""
    return struct.pack("<Q", len(header) if length is None else length) + header + rest
