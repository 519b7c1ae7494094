"""Bundles, checkpoints and weights made to do harm: each is one way to try it.

Each is made in a folder of its own. Two files lie outside: `secret`, which must not be read, and
`canary`, which appears if code of a file is run.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from guarded_opening import Kind
from mutated_models import packed_checkpoint, replace_graph, write_small_bundle
from onnx import TensorProto, helper
from small_bundles import array, cam_model, model, read_manifest, tensor_info, write_manifest

from wsss.runtime.bundle.open import MANIFEST

SECRET_BYTES = 36
"""As many as the weight of the graph that is attacked takes."""


class Outside(NamedTuple):
    """The files that must stay as they are."""

    secret: Path
    canary: Path


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def write_outside(folder: Path) -> Outside:
    """The secret; the canary is not there yet."""
    outside = Outside(folder / "secret.bin", folder / "canary")
    outside.secret.write_bytes(bytes(SECRET_BYTES))
    return outside


def write_hostile(
    folder: Path, outside: Outside, checkpoint: bytes
) -> dict[str, tuple[Kind, Path]]:
    """Every hostile file by the name of its way.

    Args:
        checkpoint: a good one of ours.
    """
    found: dict[str, tuple[Kind, Path]] = {}
    for name, attack in BUNDLES.items():
        path = folder / f"{len(found):03}"
        attack(write_small_bundle(path), outside)
        found[f"bundle: {name}"] = "bundle", path
    for name, make in CHECKPOINTS.items():
        path = folder / f"{len(found):03}.safetensors"
        path.write_bytes(make(checkpoint, outside))
        found[f"checkpoint: {name}"] = "checkpoint", path
        if " is " not in name:  # what a header says of a whole network
            found[f"weights: checkpoint: {name}"] = "weights", _copy(path)
    fifo = folder / "pipe.safetensors"
    os.mkfifo(fifo)
    found["checkpoint: a pipe"] = "checkpoint", fifo
    for suffix in (".pth", ".safetensors"):
        for name, data in _pickles(outside).items():
            path = folder / f"{len(found):03}{suffix}"
            path.write_bytes(data)
            found[f"weights: {name}{suffix}"] = "weights", path
    return found


def _copy(path: Path) -> Path:
    copy = path.with_name(f"copy {path.name}")
    copy.write_bytes(path.read_bytes())
    return copy


# --- bundles ---

Attack = Callable[[Path, Outside], None]


def _cam(change: Callable[[onnx.ModelProto], None]) -> Attack:
    """An attack by a changed `cam.onnx`, whose manifest stays as it was."""

    def attack(folder: Path, outside: Outside) -> None:
        made = cam_model()
        change(made)
        replace_graph(folder, "cam", made.SerializeToString())

    return attack


def _graph(make: Callable[[], onnx.ModelProto | bytes]) -> Attack:
    """An attack by another graph, described as it is where it is one."""
    return lambda folder, outside: replace_graph(folder, "cam", make())


def _external(location: Callable[[Path, Outside], str], *, at: str = "weight") -> Attack:
    """A tensor that says it lies in another file."""

    def attack(folder: Path, outside: Outside) -> None:
        tensor = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[3, 3])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location(folder, outside))
        made = cam_model()
        if at == "weight":
            made.graph.initializer[0].CopyFrom(tensor)
        elif at == "attribute":
            del made.graph.initializer[0]
            node = helper.make_node("Constant", [], ["weight"], value=tensor)
            made.graph.node.insert(0, node)
        else:
            del made.graph.initializer[0]
            tensor.dims[:] = [9]
            sparse = helper.make_sparse_tensor(tensor, array("", range(9)), [3, 3])
            made.graph.sparse_initializer.append(sparse)
        replace_graph(folder, "cam", made.SerializeToString())

    return attack


def _link(kind: str) -> Callable[[Path, Outside], str]:
    def location(folder: Path, outside: Outside) -> str:
        path = folder / "weights.bin"
        if kind == "symbolic":
            path.symlink_to(outside.secret)
        elif kind == "hard":
            os.link(outside.secret, path)
        else:
            (folder / "sub").symlink_to(outside.secret.parent)
            return f"sub/{outside.secret.name}"
        return path.name

    return location


def _exchanged(file: str, kind: str) -> Attack:
    """A file of the bundle itself that is something else."""

    def attack(folder: Path, outside: Outside) -> None:
        path = folder / file
        if kind == "pipe":
            path.unlink()
            os.mkfifo(path)
        elif kind == "folder":
            path.unlink()
            path.mkdir()
        elif kind == "giant":
            os.truncate(path, 1 << 40)
        elif kind == "hard":
            os.link(path, folder.parent / f"{folder.name} second name")
        elif kind == "device":
            path.unlink()
            path.symlink_to("/dev/zero")
        else:
            path.unlink()
            path.symlink_to(outside.secret)

    return attack


def _manifest(key: str, value: Callable[[Outside], Any]) -> Attack:
    """A field of the manifest, sealed: `graphs.cam.file`."""

    def attack(folder: Path, outside: Outside) -> None:
        changed = read_manifest(folder)
        place = changed
        *path, last = key.split(".")
        for part in path:
            place = place[part]
        place[last] = value(outside)
        write_manifest(folder, changed)

    return attack


def _nested_branches(depth: int) -> onnx.ModelProto:
    info = tensor_info("y", ["n", 3])
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [info])
    for level in range(depth):
        branches = (
            {"then_branch": inner, "else_branch": inner}
            if level < 2
            else {
                "then_branch": inner,
                "else_branch": helper.make_graph(
                    [helper.make_node("Identity", ["x"], ["y"])], "g", [], [info]
                ),
            }
        )
        node = helper.make_node("If", ["yes"], ["y"], **branches)
        inner = helper.make_graph([node], "g", [], [info])
    return model(list(inner.node), [array("yes", True, np.bool_)])


def _nested_bytes(levels: int) -> bytes:
    """Graphs in attributes in nodes, without end: a bomb for recursive readers."""
    data, fields = b"", (1, 5, 6)
    for level in range(levels):
        data = bytes([fields[level % 3] << 3 | 2]) + _varint(len(data)) + data
    return b"\x3a" + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _loop(trips: Sequence[int], computed: bool = False) -> onnx.ModelProto:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["c"], ["go"]),
            helper.make_node("Identity", ["v"], ["w"]),
        ],
        "body",
        [
            tensor_info("i", [], TensorProto.INT64),
            tensor_info("c", [], TensorProto.BOOL),
            tensor_info("v", ["n", 3]),
        ],
        [tensor_info("go", [], TensorProto.BOOL), tensor_info("w", ["n", 3])],
    )
    nodes = [helper.make_node("Loop", ["trips", "yes", "x"], ["y"], body=body)]
    constants = [array("yes", True, np.bool_), array("half" if computed else "trips", trips[0])]
    if computed:
        nodes.insert(0, helper.make_node("Mul", ["half", "half"], ["trips"]))
    return model(nodes, constants)


def _computed_shape(factor: int, kind: str) -> onnx.ModelProto:
    """Memory that only a product of constants asks for, which engines compute when they open."""
    nodes = [
        helper.make_node("Mul", ["factor", "factor"], ["size"]),
        helper.make_node(kind, ["size"] if kind == "ConstantOfShape" else ["one", "size"], ["z"]),
        helper.make_node("ReduceSum", ["z"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return model(nodes, [array("factor", [factor, 1]), array("one", [[1.0]], np.float32)])


def _doubling(steps: int) -> onnx.ModelProto:
    """Small constants that double until they fill the memory."""
    nodes = [
        helper.make_node("Concat", [f"c{k}", f"c{k}"], [f"c{k + 1}"], axis=0) for k in range(steps)
    ]
    nodes.append(helper.make_node("ReduceSum", [f"c{steps}"], ["sum"], keepdims=0))
    nodes.append(helper.make_node("Add", ["x", "sum"], ["y"]))
    return model(nodes, [array("c0", [1.0] * 1024, np.float32)])


def _operator(kind: str, domain: str = "") -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        made = model([helper.make_node(kind, ["x"], ["y"], domain=domain)])
        if domain:
            made.opset_import.append(helper.make_opsetid(domain, 1))
        return made

    return make


def _function(made: onnx.ModelProto) -> None:
    made.functions.append(
        helper.make_function(
            "", "Max", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], made.opset_import
        )
    )


def _swap(made: onnx.ModelProto) -> None:
    made.graph.node[0].input[0], made.graph.node[1].output[0] = "y", "y"


def _own_input(made: onnx.ModelProto) -> None:
    made.graph.node[0].input[0] = "product"


def _options(made: onnx.ModelProto) -> None:
    """Settings of a session, as onnxruntime can read them out of a file."""
    options = {"session_options": {"enable_profiling": True, "intra_op_num_threads": 10_000}}
    helper.set_model_props(made, {"ort_config": json.dumps(options)})


def _weight(values: Sequence[float]) -> Callable[[onnx.ModelProto], None]:
    def change(made: onnx.ModelProto) -> None:
        made.graph.initializer[0].raw_data = np.resize(np.float32(values), 9).tobytes()

    return change


def _dims(*dims: int) -> Callable[[onnx.ModelProto], None]:
    def change(made: onnx.ModelProto) -> None:
        made.graph.initializer[0].dims[:] = dims

    return change


def _many_nodes() -> onnx.ModelProto:
    names = ["x", *(f"v{number}" for number in range(200_001)), "y"]
    pairs = pairwise(names)
    return model([helper.make_node("Relu", [one], [two]) for one, two in pairs])


def _training(made: onnx.ModelProto) -> None:
    made.training_info.add().algorithm.CopyFrom(made.graph)


BUNDLES: dict[str, Attack] = {
    "external data behind dots": _external(lambda folder, outside: f"../{outside.secret.name}"),
    "external data by an absolute path": _external(lambda folder, outside: str(outside.secret)),
    "external data by dots in the middle": _external(
        lambda folder, outside: f"cam.onnx/../../{outside.secret.name}"
    ),
    "external data by a symbolic link": _external(_link("symbolic")),
    "external data by a linked folder": _external(_link("folder")),
    "external data by a hard link": _external(_link("hard")),
    "external data of a device": _external(lambda folder, outside: "/dev/zero"),
    "external data in memory": _external(lambda folder, outside: "*/_ORT_MEM_ADDR_/*"),
    "external data in an attribute": _external(_link("hard"), at="attribute"),
    "external data of a sparse tensor": _external(
        lambda folder, outside: f"../{outside.secret.name}", at="sparse"
    ),
    **{
        f"{file} is {kind}": _exchanged(file, kind)
        for file in ("cam.onnx", MANIFEST)
        for kind in ("symbolic", "hard", "pipe", "folder", "giant", "device")
    },
    **{
        f"graph named {name}": _manifest("graphs.cam.file", lambda outside, name=name: name)
        for name in (
            "../secret.bin",
            "../secret.onnx",
            "/dev/zero",
            "",
            "a/../cam.onnx",
            "CON.onnx\0",
        )
    },
    "a graph that is a pickle": lambda folder, outside: replace_graph(
        folder, "cam", pickle.dumps(Canary(outside.canary))
    ),
    "a graph that is saved by torch": lambda folder, outside: replace_graph(
        folder, "cam", _pickles(outside)["torch zip"]
    ),
    "a manifest that is a pickle": lambda folder, outside: _overwrite(
        folder / MANIFEST, pickle.dumps(Canary(outside.canary))
    ),
    "a manifest of brackets": lambda folder, outside: _overwrite(
        folder / MANIFEST, b'{"schema": 1, "a": ' + b"[" * 500_000
    ),
    "a manifest of deep settings": _manifest("settings", lambda outside: _deep(900)),
    "a manifest of many classes": _manifest(
        "classes", lambda outside: [f"class {number}" for number in range(100_000)]
    ),
    "a cycle of two": _cam(_swap),
    "a cycle of one": _cam(_own_input),
    "a weight of 2**62": _cam(_dims(2**31, 2**31)),
    "a weight below zero": _cam(_dims(-3, -3)),
    "a weight without end": _cam(_dims(2**63 - 1)),
    "NaN as weights": _cam(_weight([float("nan")])),
    "infinite weights": _cam(_weight([float("inf"), -float("inf")])),
    "denormal weights": _cam(_weight([1e-45])),
    "a function instead of Max": _cam(_function),
    "training information": _cam(_training),
    "settings of a session": _cam(_options),
    "a python operator": _graph(_operator("PyOp", "ai.onnx.contrib")),
    "an operator of Microsoft": _graph(_operator("Attention", "com.microsoft")),
    "an operator of nobody": _graph(_operator("System", "evil")),
    "an unknown operator": _graph(_operator("System")),
    "50 branches in each other": _graph(lambda: _nested_branches(20)),
    "3000 graphs in each other": _graph(lambda: _nested_bytes(3000)),
    "a loop of 2**62 trips": _graph(lambda: _loop([2**62])),
    "a loop of computed trips": _graph(lambda: _loop([2**31], computed=True)),
    "a computed shape of 2**40": _graph(lambda: _computed_shape(2**20, "ConstantOfShape")),
    "a computed shape of 2**62": _graph(lambda: _computed_shape(2**31, "ConstantOfShape")),
    "a computed tile of 2**40": _graph(lambda: _computed_shape(2**20, "Tile")),
    "a computed expansion of 2**36": _graph(lambda: _computed_shape(2**18, "Expand")),
    "constants that double": _graph(lambda: _doubling(30)),
    "200,002 nodes": _graph(_many_nodes),
    "a graph of zeros": _graph(lambda: bytes(1000)),
    "a graph of another format": _graph(lambda: b"\x18\x00\x00\x00ORTM" + bytes(200)),
}


def _overwrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


# --- checkpoints ---


def _own(changes: Callable[[dict[str, Any]], None]) -> Callable[[bytes, Outside], bytes]:
    """What stands in the header that is ours."""

    def make(checkpoint: bytes, outside: Outside) -> bytes:
        header, rest = _parts(checkpoint)
        own = json.loads(header["__metadata__"]["wsss"])
        changes(own)
        header["__metadata__"]["wsss"] = json.dumps(own)
        return packed_checkpoint(json.dumps(header).encode(), rest)

    return make


def _header(changes: Callable[[dict[str, Any]], None]) -> Callable[[bytes, Outside], bytes]:
    """What stands in the header of safetensors."""

    def make(checkpoint: bytes, outside: Outside) -> bytes:
        header, rest = _parts(checkpoint)
        changes(header)
        return packed_checkpoint(json.dumps(header).encode(), rest)

    return make


def _parts(checkpoint: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", checkpoint)
    return json.loads(checkpoint[8 : 8 + length]), checkpoint[8 + length :]


def _first(header: dict[str, Any]) -> dict[str, Any]:
    return next(value for name, value in header.items() if name != "__metadata__")


def _set(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(fields: dict[str, Any]) -> None:
        *path, last = key.split(".")
        for part in path:
            fields = fields[part]
        fields[last] = value

    return change


CHECKPOINTS: dict[str, Callable[[bytes, Outside], bytes]] = {
    "a pickle": lambda data, outside: pickle.dumps(Canary(outside.canary)),
    "a file of torch": lambda data, outside: _pickles(outside)["torch zip"],
    "empty": lambda data, outside: b"",
    "a header of 2**63 bytes": lambda data, outside: packed_checkpoint(b"{}", b"", 2**63),
    "a header beyond the file": lambda data, outside: packed_checkpoint(b"{}", b"", 10**6),
    "a header of brackets": lambda data, outside: packed_checkpoint(b"[" * 10**6, b""),
    "a name twice": lambda data, outside: packed_checkpoint(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"0",
    ),
    "overlapping tensors": lambda data, outside: packed_checkpoint(
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
        b'"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}',
        b"000",
    ),
    "offsets that run backwards": _header(lambda h: _set("data_offsets", [10**9, 0])(_first(h))),
    "a shape that overflows": _header(lambda h: _set("shape", [2**40, 2**40])(_first(h))),
    "an unknown type": _header(lambda h: _set("dtype", "OBJ")(_first(h))),
    "not a number": lambda data, outside: data[:-4] + struct.pack("<f", float("nan")),
    "all not a number": lambda data, outside: data[:-4096] + b"\xff" * 4096,
    "metadata of brackets": _header(lambda h: _set("__metadata__.wsss", "[" * 10**6)(h)),
    "metadata that are a list": _header(lambda h: _set("__metadata__.wsss", "[[]]")(h)),
    "metadata of a long number": _header(
        lambda h: _set("__metadata__.wsss", '{"a": ' + "9" * 10**5 + "}")(h)
    ),
    "metadata with control characters": _header(
        lambda h: _set("__metadata__.wsss", '{"format_version": "\\u001b[31m\\n\\n"}')(h)
    ),
    **{
        f"network.{key} is {str(value)[:12]!r}": _own(_set(f"network.{key}", value))
        for key in ("class", "backbone", "output_stride", "arguments", "arguments.num_classes")
        for value in (None, -1, 10**12, 2.5, "../x\n", [], {}, True)
    },
    **{
        f"{key} is {str(value)[:12]!r}": _own(_set(key, value))
        for key in ("network", "classes", "normalisation", "method", "format_version")
        for value in (None, -1, "x\n", [], {}, [[]], [None] * 3, True, ["a"] * 300)
    },
    **{
        f"normalisation.{key} is {value}": _own(_set(f"normalisation.{key}", value))
        for key in ("scale", "mean", "std", "channel_order")
        for value in (None, "x", [], [0, 0, 0], [1, 2], ["a"] * 3, {}, 0, 1e400)
    },
}


def _pickles(outside: Outside) -> dict[str, bytes]:
    """In the forms that torch reads."""
    evil = {"state_dict": {"a": Canary(outside.canary)}}
    found = {f"pickle {number}": pickle.dumps(evil, number) for number in (0, 2, 4, 5)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(evil, 2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    found["torch zip"] = buffer.getvalue()
    magic = [
        pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    ]
    found["old torch"] = b"".join(magic) + pickle.dumps(evil, 2) + pickle.dumps([], 2)
    return found
