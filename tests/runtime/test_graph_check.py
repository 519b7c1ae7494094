"""Hostile and damaged graphs end in one line that names the file; valid ones pass."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_bundles import array, cam_model, label_model, model, tensor_info

from wsss.errors import ArtifactError
from wsss.export.graphs.walk import walk_model
from wsss.runtime.backends.contract import TensorSpec
from wsss.runtime.bundle import graph_check
from wsss.runtime.bundle.open import GraphEntry

CAM = GraphEntry(
    file="cam.onnx",
    precision="fp32",
    inputs=(TensorSpec("x", "float32", ("n", 3)), TensorSpec("threshold", "float32", (), True)),
    outputs=(TensorSpec("y", "float32", ("n", 3)),),
)


def write(path: Path, content: bytes | onnx.ModelProto) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def check_graph(path: Path, expected: GraphEntry | None = None) -> None:
    graph_check.check_graph(path.read_bytes(), str(path), expected)


def refusal(path: Path, expected: GraphEntry | None = None) -> str:
    with pytest.raises(ArtifactError) as caught:
        check_graph(path, expected)
    message = str(caught.value)
    assert path.name in message and message.isprintable() and len(message) < 1000
    return message


def op(kind: str, *inputs: str, to: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [to], "node", **attributes)


def relu(source: str = "x", target: str = "y", **fields: str) -> onnx.NodeProto:
    return op("Relu", source, to=target, **fields)


def plain() -> onnx.ModelProto:
    return model([relu()])


def branch(*nodes: onnx.NodeProto, output: str = "r") -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "branch", [], [tensor_info(output, None)])


def with_branches(then: onnx.GraphProto, other: onnx.GraphProto | None = None) -> onnx.ModelProto:
    other = other or branch(relu("x", "s"), output="s")
    node = op("If", "yes", then_branch=then, else_branch=other)
    return model([node], [array("yes", True, np.bool_)])


def with_constant(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model([op("Add", "x", tensor.name)], [tensor])


def outside(location: str = "weights.bin", **entries: str) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def sparse(values: onnx.TensorProto) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(values, array("i", [0, 1, 2]), [5])


def constant_node(**attributes: object) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["w"], "constant", **attributes)


# --- valid ---


@pytest.mark.parametrize(
    "valid",
    [cam_model, label_model, walk_model, lambda: walk_model(source="features", radius=3), plain],
)
def test_what_we_write_is_accepted(valid: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    check_graph(write(tmp_path / "a.onnx", valid()))


def test_inputs_and_outputs_are_compared(tmp_path: Path) -> None:
    path = write(tmp_path / "cam.onnx", cam_model())
    check_graph(path, CAM)
    check_graph(path, replace(CAM, inputs=CAM.inputs[::-1]))  # by name, not by place
    first, default = CAM.inputs
    for inputs, reason in (
        ([default], "the input 'x', which bundle.json lacks"),
        ([first, default, TensorSpec("z", "bool", ())], "lacks the input 'z'"),
        ([replace(first, dtype="float16"), default], "expected by bundle.json: float16 ['n', 3]"),
        ([replace(first, shape=("n", 4)), default], "as float32 ['n', 3], expected"),
        ([replace(first, shape=("m", 3)), default], "float32 ['m', 3]"),
        ([replace(first, shape=("n",)), default], "float32 ['n']"),
        ([first, replace(default, is_optional=False)], "as optional float32 []"),
    ):
        assert reason in refusal(path, replace(CAM, inputs=tuple(inputs)))
    (output,) = CAM.outputs
    assert "lacks the output" in refusal(path, replace(CAM, outputs=(output, first)))
    assert "has the output 'y' as" in refusal(
        path, replace(CAM, outputs=(replace(output, shape=()),))
    )


def test_an_axis_needs_a_size_or_a_name_to_be_as_expected(tmp_path: Path) -> None:
    nameless = cam_model()
    nameless.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    assert "as float32 ['', 3]" in refusal(write(tmp_path / "cam.onnx", nameless), CAM)


# --- data in other files ---


def in_initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return with_constant(tensor)


def in_attribute(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model([constant_node(value=tensor), op("Add", "x", "w")])


def in_attribute_list(tensor: onnx.TensorProto) -> onnx.ModelProto:
    changed = plain()
    changed.graph.node[0].attribute.add(
        name="a", type=onnx.AttributeProto.TENSORS, tensors=[tensor]
    )
    return changed


def in_subgraph(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return with_branches(branch(constant_node(value=tensor), relu("w", "r")))


def in_initializer_of_subgraph(tensor: onnx.TensorProto) -> onnx.ModelProto:
    inner = branch(relu("w", "r"))
    inner.initializer.append(tensor)
    return with_branches(inner)


def in_sparse_initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    changed = plain()
    changed.graph.sparse_initializer.append(sparse(tensor))
    return changed


def in_sparse_attribute(tensor: onnx.TensorProto) -> onnx.ModelProto:
    node = constant_node(sparse_value=sparse(tensor))
    return model([node, op("Add", "x", "w")])


def in_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    changed = plain()
    changed.functions.add(name="f", domain="d", output=["w"], node=[constant_node(value=tensor)])
    return changed


def in_training(tensor: onnx.TensorProto) -> onnx.ModelProto:
    changed = plain()
    changed.training_info.add().algorithm.initializer.append(tensor)
    return changed


PLACES = [
    in_initializer,
    in_attribute,
    in_attribute_list,
    in_subgraph,
    in_initializer_of_subgraph,
    in_sparse_initializer,
    in_sparse_attribute,
    in_function,
    in_training,
]


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_refused_at_any_place(
    place: Callable[[onnx.TensorProto], onnx.ModelProto], tmp_path: Path
) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(12))
    message = refusal(write(tmp_path / "a.onnx", place(outside())))
    assert "keeps tensor 'w' in another file, 'weights.bin'" in message


@pytest.mark.parametrize(
    "location",
    [
        *("../secret", "/etc/passwd", "sub/../../secret", "sub/secret", "symlink", "hardlink"),
        *("*/_ORT_MEM_ADDR_/*", "a\nb\x1b[31m", "x" * 10_000, "absent", ""),
    ],
)
def test_external_data_is_refused_whatever_its_location(location: str, tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret", tmp_path / "bundle"
    secret.write_bytes(bytes(12))
    folder.mkdir()
    (folder / "symlink").symlink_to(secret)
    (folder / "sub").symlink_to(tmp_path)
    os.link(secret, folder / "hardlink")
    message = refusal(write(folder / "a.onnx", with_constant(outside(location))))
    assert "in another file, " in message and repr(location)[:20] in message


def test_an_entry_alone_is_external_data(tmp_path: Path) -> None:
    tensor = array("w", [1, 2, 3], np.float32)
    tensor.external_data.add(key="location", value="../secret")
    assert "'../secret'" in refusal(write(tmp_path / "a.onnx", with_constant(tensor)))


# --- hostile structure ---


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    made = plain()
    change(made)
    return made


def versions(*opsets: tuple[str, int], ir: int = 10) -> onnx.ModelProto:
    made = plain()
    made.ir_version = ir
    made.ClearField("opset_import")
    made.opset_import.extend(helper.make_opsetid(*opset) for opset in opsets)
    return made


def nested(depth: int) -> onnx.ModelProto:
    inner = branch(relu("x", f"r{depth}"), output=f"r{depth}")
    for level in reversed(range(depth)):
        other = branch(relu("x", f"s{level}"), output=f"s{level}")
        node = op("If", "yes", to=f"r{level}", then_branch=inner, else_branch=other)
        inner = branch(node, output=f"r{level}")
    return with_branches(inner)


def needs_later_node() -> onnx.ModelProto:
    """A branch that takes what the outer graph computes after it."""
    made = with_branches(branch(relu("z", "r")))
    made.graph.node.append(relu("x", "z"))
    return made


def loop(trips: int | None) -> onnx.ModelProto:
    """A value carried through a loop; None takes the number of trips from a node."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Relu", ["before"], ["after"]),
        ],
        "body",
        [
            tensor_info("trip", [], TensorProto.INT64),
            tensor_info("going", [], TensorProto.BOOL),
            tensor_info("before", ["n", 3]),
        ],
        [tensor_info("goes_on", [], TensorProto.BOOL), tensor_info("after", ["n", 3])],
    )
    nodes = [helper.make_node("Loop", ["count", "", "x"], ["y"], "loop", body=body)]
    if trips is not None:
        return model(nodes, [array("count", trips)])
    return model([helper.make_node("Size", ["x"], ["count"]), *nodes])


def test_a_bounded_loop_passes(tmp_path: Path) -> None:
    path = tmp_path / "loop.onnx"
    path.write_bytes(loop(100_000).SerializeToString())
    check_graph(path)


STRUCTURES = {
    "cycle": (model([relu("a", "b"), relu("b", "a")]), "takes 'a', which nothing before"),
    "itself": (model([relu("y", "y")]), "takes 'y', which nothing before"),
    "unsorted": (model([relu("z"), relu("x", "z")]), "takes 'z', which nothing before"),
    "cut": (model([relu("absent")]), "takes 'absent', which nothing before"),
    "later in the outer graph": (needs_later_node(), "takes 'z', which nothing before"),
    "of a sibling": (
        with_branches(branch(relu("x", "r")), branch(relu("r", "s"), output="s")),
        "takes 'r', which nothing before",
    ),
    "output without source": (model([relu("x", "z")]), "lists the output 'y' twice or without"),
    "output from outside": (with_branches(branch(output="x")), "lists the output 'x' twice or"),
    "output twice": (
        changed(lambda made: made.graph.output.append(made.graph.output[0])),
        "lists the output 'y' twice",
    ),
    "input twice": (
        changed(lambda made: made.graph.input.append(made.graph.input[0])),
        "defines the name 'x' twice",
    ),
    "result twice": (model([relu(), relu()]), "defines the name 'y' twice"),
    "name of an input": (model([relu("x", "x"), relu()]), "defines the name 'x' twice"),
    "constant twice": (model([relu()], [array("w", [1])] * 2), "defines the name 'w' twice"),
    "default twice": (model([relu()], [array("x", [1])] * 2), "defines the name 'x' twice"),
    "shadow": (with_branches(branch(relu("x", "yes"), output="yes")), "name 'yes' twice"),
    "no nodes": (model([]), "no nodes or no outputs"),
    "too many nodes": (model([relu()] * 200_001), "200001 nodes or more, expected at most 200000"),
    "endless loop": (loop(2**62), "trips, expected a constant of at most 100000"),
    "loop of trips that only the run tells": (loop(None), "of unknown trips, expected a constant"),
    "deep": (nested(8), "nests graphs deeper than 8 levels"),
    "domain": (model([relu(domain="com.microsoft")]), "of domain 'com.microsoft', expected"),
    "domain in a branch": (
        with_branches(branch(relu("x", "r", domain="evil"))),
        "of domain 'evil', expected standard operators",
    ),
    "domain imported": (versions(("", 20), ("ai.onnx.ml", 1)), "operators of 'ai.onnx.ml'"),
    "opset twice": (versions(("", 20), ("", 20)), "standard operators 2 times"),
    "opset twice, other name": (versions(("", 20), ("ai.onnx", 19)), "standard operators 2 times"),
    "no opset": (versions(), "standard operators 0 times, expected once"),
    "opset 17": (versions(("", 17)), "has opset 17, expected 18 to 20"),
    "opset 99": (versions(("", 99)), "has opset 99, expected 18 to 20"),
    "opset -1": (versions(("", -1)), "has opset -1, expected 18 to 20"),
    "ir 99": (versions(("", 20), ir=99), "has ir version 99, expected 8 to 10"),
    "ir 3": (versions(("", 20), ir=3), "has ir version 3, expected 8 to 10"),
    "function": (changed(lambda made: made.functions.add(name="Relu")), "the function 'Relu'"),
    "training": (changed(lambda made: made.training_info.add()), "training information"),
    "gap": (
        model([op("Max", "x", "")]),
        "node 'node' ('Max') that leaves out input 1, expected all that are not optional",
    ),
    "gap of one": (model([op("Add", "", "x")]), "that leaves out input 0"),
    "gap of no operator": (model([op("System", "")]), "No Op registered for System"),
    "sparse": (in_sparse_initializer(array("v", [1, 2, 3], np.float32)), "holds a sparse tensor"),
    "sparse value": (in_sparse_attribute(array("v", [1, 2, 3], np.float32)), "a sparse tensor"),
    "axis": (
        model([op("LayerNormalization", "x", "x", axis=2**63 - 1)]),
        "with axis 9223372036854775807, expected -64 to 63",
    ),
    "batch_dims": (
        model([op("GatherND", "x", "i", batch_dims=-1)], [array("i", [[0]])]),
        "with batch_dims -1, expected 0 to 63",
    ),
    "num_outputs": (model([op("Split", "x", num_outputs=2)]), "num_outputs 2, expected 1 to 1"),
    "no operator": (model([op("System", "x")]), "is refused by onnx (No Op registered for System"),
    "wrong attribute": (model([relu(alpha="1")]), "is refused by onnx (Unrecognized attribute"),
    "wrong types": (model([op("Add", "x", "w")], [array("w", [1])]), "is refused by onnx ("),
}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_hostile_structure(kind: str, tmp_path: Path) -> None:
    hostile, reason = STRUCTURES[kind]
    assert reason in refusal(write(tmp_path / "label.onnx", hostile))


def tensor(*dims: int, data_type: int = TensorProto.FLOAT, **data: object) -> onnx.TensorProto:
    return TensorProto(name="w", data_type=data_type, dims=dims, **data)


TENSORS = {
    "too little data": (tensor(9, raw_data=bytes(35)), "holds 35 in raw_data, expected 36"),
    "too much data": (tensor(9, raw_data=bytes(37)), "holds 37 in raw_data, expected 36"),
    "too few values": (tensor(3, float_data=[1, 2]), "holds 2 in float_data, expected 12"),
    "two kinds of data": (tensor(1, float_data=[1], raw_data=bytes(4)), "1 in float_data, 4 in"),
    "other kind of data": (tensor(1, int64_data=[1]), "holds 1 in int64_data, expected 4"),
    "data of nothing": (tensor(0, float_data=[1]), "holds 1 in float_data, expected 0"),
    "no data": (tensor(3), "holds nothing, expected 12 in raw_data or 3 in float_data"),
    "negative": (tensor(-1, -3, float_data=[1] * 3), "shape [-1, -3], expected up to 64 sizes"),
    "huge": (tensor(2**16, 2**16), "shape [65536, 65536], expected at most 2147483648 elements"),
    "overflow to 0": (tensor(2**32, 2**32), "expected at most 2147483648 elements"),
    "overflow behind 0": (tensor(0, 2**40, 2**40), "expected at most 2147483648 elements"),
    "many axes": (tensor(*[1] * 65, raw_data=bytes(4)), "expected up to 64 sizes"),
    "text": (tensor(1, data_type=TensorProto.STRING, string_data=[b"a"]), "of type 8, expected"),
    "four bits": (tensor(2, data_type=TensorProto.INT4, raw_data=b"1"), "of type 22, expected"),
    "no type": (tensor(1, data_type=0, raw_data=b"1"), "of type 0, expected numbers"),
    "unknown type": (tensor(1, data_type=12345, raw_data=b"1"), "of type 12345, expected numbers"),
    "NaN": (tensor(2, raw_data=np.float32([1, np.nan]).tobytes()), "that holds NaN"),
    "NaN as values": (tensor(2, float_data=[1, float("nan")]), "that holds NaN"),
    "NaN of 16 bits": (tensor(1, data_type=TensorProto.FLOAT16, int32_data=[0x7E00]), "holds NaN"),
    "NaN of 16 bits and a sign": (
        tensor(1, data_type=TensorProto.FLOAT16, int32_data=[-512]),
        "holds NaN",
    ),
    "NaN of 64 bits": (
        tensor(1, data_type=TensorProto.DOUBLE, double_data=[float("nan")]),
        "that holds NaN",
    ),
    "segment": (tensor(1, float_data=[1], segment={"begin": 0, "end": 1}), "'w' in segments"),
}


@pytest.mark.parametrize("place", [in_initializer, in_attribute, in_initializer_of_subgraph])
@pytest.mark.parametrize("kind", TENSORS)
def test_hostile_tensor(
    kind: str, place: Callable[[onnx.TensorProto], onnx.ModelProto], tmp_path: Path
) -> None:
    hostile, reason = TENSORS[kind]
    message = refusal(write(tmp_path / "label.onnx", place(hostile)))
    assert "tensor 'w'" in message and reason in message


@pytest.mark.parametrize("shape", [[2**20, 2**20], ["n", 2**40], [-1, 3]])
def test_hostile_shape_of_an_input(shape: list[int | str], tmp_path: Path) -> None:
    hostile = model([relu()], inputs=[tensor_info("x", shape)])
    assert "has tensor 'x' of shape" in refusal(write(tmp_path / "a.onnx", hostile))


HUGE = 2**31 + 1


def making(kind: str, *sizes: int, inputs: str = "x size") -> onnx.ModelProto:
    """A graph in which constant integers tell how much an operator makes."""
    node = op(kind, *inputs.replace("-", "").split(" "), to="z")
    return model([node, relu("z")], [array("size", sizes)])


OVERSIZED = {
    "ConstantOfShape": (making("ConstantOfShape", HUGE, inputs="size"), HUGE),
    "overflow": (making("ConstantOfShape", 2**32, 2**32, inputs="size"), 2**64),
    "Expand": (making("Expand", 2**16, 2**16, 1), 2**32),
    "Reshape": (making("Reshape", 2**40, -1), 2**40),
    "Tile": (making("Tile", 2**40, 1), 2**40),
    "Pad": (making("Pad", 0, 0, 0, 2**40), 2**40),
    "Resize": (making("Resize", 2**20, 2**20, inputs="x - - size"), 2**40),
    "Range": (making("Range", HUGE), HUGE),
    "attribute": (model([constant_node(value_ints=[HUGE, 1]), op("Expand", "x", "w")]), HUGE),
    "constant": (
        model([constant_node(value=array("", [HUGE, 1])), op("Expand", "x", "w")]),
        HUGE,
    ),
    "random": (model([op("RandomNormal", to="z", shape=[2**20] * 2), relu("z")]), 2**40),
}


@pytest.mark.parametrize("kind", OVERSIZED)
def test_more_elements_than_fit(kind: str, tmp_path: Path) -> None:
    hostile, elements = OVERSIZED[kind]
    message = refusal(write(tmp_path / "a.onnx", hostile))
    assert f"asks for {elements} elements, expected at most 2147483648" in message


def test_more_elements_than_fit_by_an_outer_constant(tmp_path: Path) -> None:
    hostile = with_branches(branch(op("Expand", "x", "w", to="r")))
    hostile.graph.initializer.append(array("w", [HUGE, 1]))
    assert f"asks for {HUGE} elements" in refusal(write(tmp_path / "a.onnx", hostile))


def test_optional_inputs_may_be_left_out(tmp_path: Path) -> None:
    clipped = model([op("Clip", "x", "", "w")], [array("w", 1.0, np.float32)])
    check_graph(write(tmp_path / "a.onnx", clipped))


def test_infinity_is_a_number(tmp_path: Path) -> None:
    check_graph(write(tmp_path / "a.onnx", with_constant(array("w", [np.inf] * 3, np.float32))))


def test_limits_are_inclusive(tmp_path: Path) -> None:
    check_graph(write(tmp_path / "a.onnx", nested(7)))
    for accepted in (versions(("", 18), ir=8), versions(("ai.onnx", 20), ir=10)):
        check_graph(write(tmp_path / "a.onnx", accepted))
    quantized = [
        op("QuantizeLinear", "x", "scale", "zero", to="q"),
        op("DequantizeLinear", "q", "scale", "zero"),
    ]
    constants = [array("scale", 0.1, np.float32), array("zero", 3, np.int8)]
    check_graph(write(tmp_path / "a.onnx", model(quantized, constants)))


# --- damaged or another format ---


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def zip_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", "x")
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_not_executed(protocol: int, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    data = pickle.dumps(Canary(canary), protocol)
    message = refusal(write(tmp_path / "a.onnx", data))
    assert ("is a pickle" if protocol > 1 else "expected an ONNX graph") in message
    assert not canary.exists()
    pickle.loads(data).close()
    assert canary.exists()  # it would have been made


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty (0 bytes)"),
        (b"<html><body>404 not found</body></html>\n" * 20, "is text, expected an ONNX graph"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is text"),
        (zip_archive(), "is a zip archive"),
        (b"\x1f\x8b\x08" + bytes(50), "is a gzip archive"),
        (bytes(1000), "is damaged or cut short"),
        (b"\xff" * 1000, "is damaged or cut short"),
        (onnx.ModelProto(ir_version=10).SerializeToString(), "no nodes or no outputs"),
        (array("w", [1, 2, 3]).SerializeToString(), "is damaged or cut short"),
    ],
)
def test_another_format(data: bytes, reason: str, tmp_path: Path) -> None:
    assert reason in refusal(write(tmp_path / "a.onnx", data))


@pytest.mark.parametrize("made", [cam_model, label_model, walk_model])
def test_truncated(made: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    data = made().SerializeToString()
    for part in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        refusal(write(tmp_path / "a.onnx", data[: int(len(data) * part)]))
    assert "damaged or cut short" in refusal(write(tmp_path / "a.onnx", data[:-30]))


def test_nested_beyond_what_the_decoder_takes(tmp_path: Path) -> None:
    """ModelProto.graph 7, .node 1, .attribute 5, .g 6: a bomb for recursive readers."""
    data, fields = b"", (1, 5, 6)
    for level in range(3000):
        tag = bytes([fields[level % 3] << 3 | 2])
        data = tag + varint(len(data)) + data
    assert "damaged" in refusal(write(tmp_path / "a.onnx", b"\x3a" + varint(len(data)) + data))


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def test_names_that_are_not_text(tmp_path: Path) -> None:
    data = cam_model().SerializeToString()
    for name in (b"product", b"weight", b"threshold", b"MatMul"):
        broken = b"\xff\x1b\n" + name[3:]
        message = refusal(write(tmp_path / "a.onnx", data.replace(name, broken)))
        assert "refused by onnx" in message or f"defines the name {broken!r}" in message


@pytest.mark.parametrize("made", [cam_model, label_model, lambda: walk_model(radius=2, steps=8)])
def test_mutated_graphs_are_accepted_or_refused(
    made: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    original = made().SerializeToString()
    generator = np.random.default_rng(7)
    num_refused = 0
    for _ in range(300):
        data = bytearray(original)
        for _ in range(int(generator.integers(1, 6))):
            data[int(generator.integers(0, len(data)))] = int(generator.integers(0, 256))
        path = write(tmp_path / "a.onnx", bytes(data))
        try:
            check_graph(path)
        except ArtifactError as error:
            assert "a.onnx" in str(error) and str(error).isprintable()
            num_refused += 1
    assert num_refused > 100


def test_absent_onnx_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", plain())
    code = (
        "import sys\n"
        "sys.modules['onnx'] = None\n"
        "from wsss.errors import MissingDependencyError\n"
        "from wsss.runtime.bundle.graph_check import check_graph\n"
        "try:\n"
        "    check_graph(open(sys.argv[1], 'rb').read(), sys.argv[1])\n"
        "except MissingDependencyError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert "onnx is not installed" in done.stdout and "pip install onnx" in done.stdout
