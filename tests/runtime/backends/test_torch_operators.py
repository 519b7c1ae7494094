"""Each operator of the torch backend against onnxruntime, and graphs that contain graphs."""

import weakref
from itertools import pairwise

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy import float16, float32, int8, int32, int64, uint8
from onnx import TensorProto, helper
from pytest import importorskip, mark, param, raises
from small_graphs import model, saved, value

from wsss.errors import ArtifactError, DataError
from wsss.export.graphs.walk import walk_model
from wsss.runtime.backends import torch_graph
from wsss.runtime.backends.onnxruntime_backend import open_onnx
from wsss.runtime.backends.torch_backend import open_torch
from wsss.runtime.backends.torch_operators import OPERATORS

importorskip("onnxruntime", reason="needs onnxruntime")

EVERY_SIZE = [(1, 1), (1, 13), (11, 1), (2, 3), (5, 9), (12, 17)]


def real(*shape, dtype=float32):
    """Normal numbers, always the same for a shape."""
    generator = np.random.default_rng(sum(shape) + len(shape))
    return np.array(generator.standard_normal(shape), dtype)


def whole(*shape, low=-9, high=9, dtype=int64):
    generator = np.random.default_rng(sum(shape) + len(shape))
    return np.array(generator.integers(low, high, shape, endpoint=True), dtype)


def flags(*shape, seed=0):
    return np.array(np.random.default_rng(seed).random(shape) < 0.5)


def vector(*numbers, dtype=int64):
    return np.array(numbers, dtype)


def number(single, dtype=float32):
    return np.array(single, dtype)


def case(kind, *arrays, outputs=1, opset=20, **attributes):
    """A node; None is an input left out."""
    text = ",".join(f"{name}={value}" for name, value in attributes.items())
    shapes = " ".join("-" if array is None else f"{array.dtype}{array.shape}" for array in arrays)
    return param(kind, arrays, outputs, opset, attributes, id=f"{kind} {shapes} {text}")


def node_model(kind, arrays, outputs, opset, attributes, constant=False):
    """A graph of one node; by `constant` all inputs but the first are in the file."""
    names = ["" if array is None else f"in{place}" for place, array in enumerate(arrays)]
    results = [f"out{place}" for place in range(outputs)]
    node = helper.make_node(kind, names, results, "it", **attributes)
    made = model([node], [], [], opset=opset)
    for name, array in zip(names, arrays, strict=True):
        if not name:
            continue
        if constant and name != "in0":
            made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        else:
            made.graph.input.append(value(name, array.dtype, [None] * array.ndim))
    for result, array in zip(results, with_onnxruntime_types(made, arrays, results), strict=True):
        made.graph.output.append(value(result, array.dtype, [None] * array.ndim))
    return made


def with_onnxruntime_types(made, arrays, results):
    """What onnxruntime computes, to learn the types of the outputs."""
    import onnxruntime

    typed = onnx.ModelProto()
    typed.CopyFrom(made)
    typed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in results)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(typed.SerializeToString(), options, providers)
    return session.run(None, given(made, arrays))


def given(made, arrays):
    wanted = {entry.name for entry in made.graph.input}
    return {f"in{n}": array for n, array in enumerate(arrays) if f"in{n}" in wanted}


def assert_same(path, inputs, atol=2e-6):
    expected = open_onnx(path, threads=1).run(inputs)
    found = open_torch(path).run(inputs)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        # onnxruntime computes most of float16 in float32; torch rounds in between.
        atol_here = 4e-3 if array.dtype == float16 else atol
        rtol = 2e-3 if array.dtype == float16 else 2e-6
        np.testing.assert_allclose(found[name], array, rtol=rtol, atol=atol_here)


BROADCAST = [((3, 4), (3, 4)), ((2, 1, 5), (3, 1)), ((), (2, 3)), ((1, 1), (1,))]
UNARY = {
    "Abs": [real, whole],
    "Ceil": [real],
    "Erf": [real],
    "Exp": [real],
    "Floor": [real],
    "Identity": [real, whole, flags],
    "Neg": [real, whole],
    "NonZero": [flags, whole],
    "Not": [flags],
    "Reciprocal": [real],
    "Relu": [real],
    "Sigmoid": [real],
    "Sign": [real, whole],
    "Size": [real, flags],
    "Tanh": [real],
}
BINARY = {
    "Add": [real, whole],
    "And": [flags],
    "Div": [real],
    "Equal": [whole, flags],
    "Greater": [real, whole],
    "GreaterOrEqual": [real, whole],
    "Less": [real, whole],
    "LessOrEqual": [real, whole],
    "Max": [real, whole],
    "Min": [real, whole],
    "Mul": [real, whole],
    "Or": [flags],
    "Sub": [real, whole],
    "Sum": [real],
    "Xor": [flags],
}
POWERS_OF_TWO = real(3, 4) * 0 + 2.0 ** whole(3, 4).astype(float32)
INT_MIN, INT_MAX = np.iinfo(int64).min, np.iinfo(int64).max

CASES = [
    *(
        case(kind, make(*shape))
        for kind, makers in UNARY.items()
        for make in makers
        for shape in [(), (1,), (3, 4), (2, 1, 3, 5)]
        if shape or kind != "NonZero"
    ),
    *(
        case(kind, make(*left), make(*right))
        for kind, makers in BINARY.items()
        for make in makers
        for left, right in BROADCAST
    ),
    *(case(kind, real(2, 5, dtype=float16)) for kind in UNARY if real in UNARY[kind]),
    *(
        case(kind, real(2, 5, dtype=float16), real(5, dtype=float16))
        for kind in BINARY
        if real in BINARY[kind]
    ),
    case("Sqrt", np.abs(real(3, 5))),
    case("Round", vector(-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.6, dtype=float32)),
    case("Max", real(3), real(2, 3), real(1)),
    case("Min", whole(3)),
    case("Sum", real(3), real(2, 3), real(1)),
    case("Sum", real(3)),
    case("Div", whole(4, 6), np.where(whole(6) == 0, 1, whole(6))),
    case("Div", vector(-7, 7, -7, 7), vector(2, 2, -2, -2)),
    case("Div", vector(-7, 7, dtype=int32), vector(2, -2, dtype=int32)),
    case("Mod", vector(-7, 7, -7, 7), vector(3, 3, -3, -3)),
    case("Mod", vector(-7, 7, -7, 7), vector(3, 3, -3, -3), fmod=1),
    case("Mod", real(3, 4), np.abs(real(4)) + 0.5, fmod=1),
    case("Pow", np.abs(real(3, 4)), real(4)),
    case("Pow", real(3, 4), number(2, int64)),
    case("Pow", whole(3, 4, low=1), number(2, int64)),
    case("Pow", np.abs(real(3, 4, dtype=float16)), number(8.0, float16)),
    case("Where", flags(3, 1), real(3, 4), number(0.0)),
    case("Where", flags(2, 3, 1), whole(4), whole(3, 1)),
    case("Where", flags(4), real(4, dtype=float16), real(1, dtype=float16)),
    case("Clip", real(3, 4), number(-0.5), number(0.5)),
    case("Clip", real(3, 4), None, number(0.5)),
    case("Clip", real(3, 4), number(0.25)),
    case("Clip", real(3, 4)),
    case("Clip", real(3, 4), number(0.5), number(-0.5)),
    case("Clip", whole(3, 4), number(0, int64), number(6, int64)),
    case("Clip", real(5, dtype=float16), number(0, float16), number(1, float16)),
    case("Elu", real(3, 4)),
    case("Elu", real(3, 4), alpha=0.3),
    case("Softmax", real(2, 3, 5)),
    case("Softmax", real(2, 3, 5) * 50, axis=1),
    case("Softmax", real(2, 3, dtype=float16), axis=0),
    *(
        case("Cast", values, to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))
        for values in (np.abs(real(3, 4)) * 9, whole(3, 4, low=0), flags(3, 4))
        for to in (float32, float16, np.float64, uint8, int8, np.int16, int32, int64, bool)
    ),
    case("Cast", real(7) * 9, to=TensorProto.INT64),
    case("MatMul", real(3, 4), real(4, 5)),
    case("MatMul", real(4), real(4, 5)),
    case("MatMul", real(3, 4), real(4)),
    case("MatMul", real(2, 1, 3, 4), real(5, 4, 2)),
    case("MatMul", real(2, 3, dtype=float16), real(3, 4, dtype=float16)),
    case("Gemm", real(3, 4), real(4, 5)),
    case("Gemm", real(3, 4), real(4, 5), real(5)),
    case("Gemm", real(4, 3), real(5, 4), real(3, 1), transA=1, transB=1, alpha=0.5, beta=2.0),
    # Powers of two, so that no quotient is a rounding error away from a tie.
    case("QuantizeLinear", POWERS_OF_TWO * 37, number(0.25), number(128, uint8)),
    case("QuantizeLinear", real(3, 4) * 90, number(0.5), number(-3, int8)),
    case("QuantizeLinear", vector(0.5, 1.5, 2.5, -0.5, dtype=float32), number(1.0)),
    case(
        "QuantizeLinear",
        real(2, 3, 4, 5) * 30,
        vector(0.5, 0.25, 1, dtype=float32),
        vector(1, 2, 3, dtype=int8),
        axis=1,
    ),
    case("DequantizeLinear", whole(3, 4, low=0, high=255, dtype=uint8), number(0.1)),
    case("DequantizeLinear", whole(3, 4, dtype=int8), number(0.1), number(5, int8)),
    case("DequantizeLinear", whole(7, low=-(2**30), high=2**30, dtype=int32), number(0.01)),
    case(
        "DequantizeLinear",
        whole(3, 2, 3, dtype=int8),
        real(3),
        whole(3, dtype=int8),
        axis=-1,
    ),
    case("DequantizeLinear", whole(3, 2, dtype=int8), real(3), axis=0),
    # Layout
    case("Concat", real(2, 3), real(2, 1), real(2, 4), axis=-1),
    case("Concat", whole(2), whole(1), axis=0),
    case("ConstantOfShape", vector(2, 0, 3)),
    case("ConstantOfShape", vector(3), value=onnx.numpy_helper.from_array(vector(7))),
    case("ConstantOfShape", vector(1, 300), value=onnx.numpy_helper.from_array(vector(True))),
    case("Expand", real(3, 1), vector(2, 3, 4)),
    case("Expand", real(3, 4), vector(1, 1)),
    case("Expand", number(0.5), vector(2, 2)),
    *(case("Flatten", real(2, 3, 4), axis=axis) for axis in (-3, -1, 0, 1, 2, 3)),
    case("Flatten", real(5)),
    case("Gather", real(5, 4), vector(0, -1, 2)),
    case("Gather", real(5, 4), whole(2, 3, low=-4, high=3, dtype=int32), axis=1),
    case("Gather", real(2, 5, 3), number(-2, int64), axis=-2),
    case("Gather", whole(6), whole(2, 2, 1, low=0, high=5)),
    case("Gather", flags(6), vector(5, 0)),
    case("Pad", real(3, 4), vector(1, 0, 2, 3)),
    case("Pad", real(3, 4), vector(-1, 2, 0, -2), number(1.5)),
    case("Pad", real(2, 3, 4, 5), vector(1, 0, 0, 2), number(-1.0), vector(2, -1)),
    case("Pad", whole(3, 4), vector(0, 1, 0, 1), number(-7, int64)),
    case("Pad", flags(3, 4), vector(0, 1, 0, 1)),
    case("Pad", real(2, 3, dtype=float16), vector(0, 1, 0, 1)),
    case("Range", number(2, int64), number(11, int64), number(3, int64)),
    case("Range", number(5, int64), number(-5, int64), number(-2, int64)),
    case("Range", number(5, int64), number(1, int64), number(1, int64)),
    case("Range", number(0.5), number(2.25), number(0.25)),
    case("Reshape", real(2, 3, 4), vector(0, -1)),
    case("Reshape", real(2, 3, 4), vector(4, 0, -1)),
    case("Reshape", real(1), np.zeros(0, int64)),
    *(case("Shape", real(2, 3, 4, 5), **cut) for cut in ({}, {"start": 2}, {"end": -1})),
    case("Shape", real(2, 3, 4, 5), start=-3, end=9),
    case("Slice", real(5, 7), vector(1, 2), vector(4, 6)),
    case("Slice", real(5, 7), vector(-3), vector(INT_MAX), vector(-1)),
    case("Slice", real(5, 7), vector(0, 1), vector(5, -1), vector(1, 0), vector(2, 3)),
    case("Slice", real(5, 7), vector(-1), vector(INT_MIN), vector(1), vector(-1)),
    case("Slice", real(5, 7), vector(9, -2), vector(-9, 0), vector(1, 0), vector(-3, -1)),
    case("Slice", real(5, 7), vector(3), vector(1), vector(1)),
    case("Slice", real(5), vector(1), vector(3), vector(0), vector(-1)),
    case("Slice", real(5), vector(-9), vector(-11), vector(0), vector(-1)),
    case("Slice", real(5, 7), vector(1, 5, dtype=int32), vector(4, 0, dtype=int32)),
    case("Split", real(7, 3), num_outputs=3, outputs=3),
    case("Split", real(2, 6), vector(1, 2, 3), axis=-1, outputs=3),
    case("Split", whole(4), num_outputs=4, outputs=4),
    case("Squeeze", real(1, 3, 1)),
    case("Squeeze", real(1, 3, 1), vector(-1)),
    case("Transpose", real(2, 3, 4)),
    case("Transpose", real(2, 3, 4), perm=[1, 2, 0]),
    case("Unsqueeze", real(2, 3), vector(0, -1)),
    case("Unsqueeze", real(2, 3), vector(3, 1)),
    case("Unsqueeze", number(3, int64), vector(0)),
    # Reductions
    *(
        case(kind, real(2, 3, 4), *axes, keepdims=keep)
        for kind in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
        for axes in ([], [vector(1)], [vector(-1, 0)])
        for keep in (0, 1)
    ),
    case("ReduceSum", real(2, 3), noop_with_empty_axes=1),
    case("ReduceSum", whole(2, 3, dtype=int32), vector(0)),
    case("ReduceSum", real(2, 3), np.zeros(0, int64), keepdims=0),
    case("ReduceMax", whole(2, 3), vector(1)),
    case("ReduceMax", flags(2, 3), vector(1)),
    case("ReduceMean", real(2, 3, dtype=float16), vector(1), opset=18),
    case("ArgMax", real(3, 4)),
    case("ArgMax", real(3, 4, 2), axis=-2, keepdims=0),
    case("ArgMax", whole(3, 40, low=0, high=3), axis=1),
    # Space
    case(
        "BatchNormalization",
        *(real(2, 3, 4, 5), real(3), real(3) - 1, real(3) + 2, np.abs(real(3)) + 1),
    ),
    case(
        "BatchNormalization",
        *(real(1, 3, 6, 5), real(3), real(3), np.zeros(3, float32), np.ones(3, float32)),
        epsilon=0.0,
    ),
    case("Conv", real(2, 3, 8, 9), real(4, 3, 3, 3)),
    case("Conv", real(2, 3, 7, 5), real(4, 3, 3, 3), real(4), pads=[1] * 4, strides=[2, 2]),
    case("Conv", real(1, 4, 9, 9), real(6, 2, 3, 2), group=2, dilations=[2, 3], pads=[2, 0, 1, 3]),
    case("Conv", real(1, 3, 1, 1), real(2, 3, 1, 1), real(2), kernel_shape=[1, 1]),
    case("Conv", real(2, 3, 9), real(4, 3, 3), pads=[0, 1], strides=[2]),
    case("Conv", real(1, 2, 4, 5, 6), real(3, 2, 2, 2, 2)),
    case("Conv", real(1, 2, 5, 6, dtype=float16), real(3, 2, 3, 3, dtype=float16), pads=[1] * 4),
    *(
        case(kind, real(2, 3, *size), kernel_shape=[3, 2], strides=[2, 2], **more)
        for kind in ("AveragePool", "MaxPool")
        for size in [(7, 9), (6, 8), (3, 3)]
        for more in (
            {},
            {"ceil_mode": 1},
            {"pads": [1, 1, 1, 1]},
            {"pads": [1, 1, 1, 1], "ceil_mode": 1},
            {"pads": [0, 1, 2, 0]},
        )
    ),
    case("AveragePool", real(1, 2, 5, 6), kernel_shape=[2, 2], pads=[1, 0, 0, 1]),
    *(
        case("AveragePool", real(1, 2, 5, 7), kernel_shape=[3, 3], count_include_pad=1, **more)
        for more in ({"pads": [1] * 4}, {"pads": [1] * 4, "ceil_mode": 1}, {"pads": [2, 0, 1, 1]})
    ),
    case("AveragePool", real(1, 2, 8), kernel_shape=[3], strides=[2]),
    case("MaxPool", real(1, 2, 9, 9), kernel_shape=[3, 3], dilations=[2, 1]),
    case("MaxPool", real(1, 2, 8), kernel_shape=[3], pads=[1, 1]),
    case("MaxPool", real(1, 2, 8, 8, dtype=float16), kernel_shape=[2, 2]),
    case("GlobalAveragePool", real(2, 3, 5, 7)),
    case("InstanceNormalization", real(2, 3, 5, 7), real(3), real(3), epsilon=1e-3),
    case("InstanceNormalization", real(2, 3, 1, 1), real(3), real(3), epsilon=1.0),
    case("InstanceNormalization", real(2, 3, 9), real(3), real(3)),
]


@mark.parametrize(("kind", "arrays", "outputs", "opset", "attributes"), CASES)
def test_operator_equals_onnxruntime(tmp_path, kind, arrays, outputs, opset, attributes):
    is_empty = any(array is not None and array.size == 0 for array in arrays)
    for constant in (True,) if is_empty else (False, True):  # no input may be empty
        made = node_model(kind, arrays, outputs, opset, attributes, constant)
        assert_same(saved(made, tmp_path), given(made, arrays))


def test_every_operator_is_tested():
    tested = {each.values[0] for each in CASES}
    assert set(OPERATORS) - tested == {"Resize"}  # below


HALF, PYTORCH, CORNERS = "half_pixel", "pytorch_half_pixel", "align_corners"


def resize_model(mode, coordinates, kind="sizes", **attributes):
    inputs = {"sizes": ["x", "", "", "by"], "scales": ["x", "", "by"]}[kind]
    attributes |= {"mode": mode, "coordinate_transformation_mode": coordinates}
    node = helper.make_node("Resize", inputs, ["y"], "it", **attributes)
    by = value("by", int64 if kind == "sizes" else float32, [len(attributes.get("axes", "BCHW"))])
    maps = [value(name, float32, [None] * 4) for name in "xy"]
    return model([node], [maps[0], by], maps[1:])


@mark.parametrize(
    ("mode", "coordinates", "rounding"),
    [
        *(("linear", coordinates, "floor") for coordinates in (HALF, PYTORCH, CORNERS)),
        *(
            ("nearest", coordinates, rounding)
            for coordinates in (HALF, PYTORCH, CORNERS, "asymmetric")
            for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        ),
    ],
)
@mark.parametrize("size", EVERY_SIZE)
def test_resize_equals_onnxruntime(tmp_path, size, mode, coordinates, rounding):
    maps = real(2, 3, *size)
    path = saved(resize_model(mode, coordinates, nearest_mode=rounding), tmp_path)
    for target in ((1, 1), (2, 26), (22, 3), (7, 8), size):
        assert_same(path, {"x": maps, "by": vector(2, 3, *target)}, atol=1e-5)
    path = saved(resize_model(mode, coordinates, "scales", nearest_mode=rounding), tmp_path)
    for scales in ((2, 2), (1.5, 1), (1, 2.3)):
        by = vector(1, 1, *scales, dtype=float32)
        assert_same(path, {"x": maps, "by": by}, atol=1e-5)


def test_resize_of_named_axes_equals_onnxruntime(tmp_path):
    path = saved(resize_model("linear", HALF, axes=[2, -1], antialias=0), tmp_path)
    assert_same(path, {"x": real(2, 3, 5, 9), "by": vector(11, 4)}, atol=1e-5)


@mark.parametrize("corners", [False, True])
@mark.parametrize("size", EVERY_SIZE)
def test_linear_resize_is_what_torch_does(tmp_path, size, corners):
    made = resize_model("linear", CORNERS if corners else HALF)
    graph, maps = open_torch(saved(made, tmp_path)), torch.from_numpy(real(2, 3, *size))
    for target in ((1, 1), (2, 26), (22, 3), (321, 7), size):
        expected = F.interpolate(maps, target, mode="bilinear", align_corners=corners)
        found = graph.run({"x": maps.numpy(), "by": vector(2, 3, *target)})["y"]
        np.testing.assert_array_equal(found, expected)


def test_resize_of_other_axes_is_refused(tmp_path):
    graph = open_torch(saved(resize_model("linear", HALF), tmp_path))
    with raises(DataError, match="only the last two axes may change"):
        graph.run({"x": real(1, 2, 3, 4), "by": vector(1, 4, 3, 4)})


@mark.parametrize("source", ["affinity", "features"])
@mark.parametrize("size", EVERY_SIZE)
def test_walk_equals_onnxruntime(tmp_path, size, source):
    path = saved(walk_model(source=source), tmp_path)
    planes = np.abs(real(2, 34, *size)) % 1
    scores = np.abs(real(2, 3, *size)) % 1
    # 73 products in float32.
    assert_same(path, {"scores": scores, source: planes}, atol=2e-5)


@mark.gpu
@mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@mark.parametrize("source", ["affinity", "features"])
def test_walk_on_a_gpu_equals_the_cpu(tmp_path, source):
    path = saved(walk_model(source=source), tmp_path)
    for size in EVERY_SIZE:
        maps = {"scores": np.abs(real(2, 3, *size)) % 1, source: np.abs(real(2, 34, *size)) % 1}
        expected, found = (open_torch(path, device=d).run(maps)["walked"] for d in ("cpu", "cuda"))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@mark.parametrize("source", ["affinity", "features"])
def test_walk_asks_the_device_for_no_value(source):
    """Tensors on torch's `meta` device have none: what reads one fails."""
    graph = walk_model(source=source).graph
    plan = torch_graph.Planner(graph, "walk", torch.device("meta")).plan(graph)
    maps = {name: torch.rand(2, 34, 20, 31, device="meta") for name in ("scores", source)}
    (walked,) = plan.run(maps)
    assert (walked.device.type, walked.shape) == ("meta", (2, 34, 20, 31))


def loop_model(trips, condition, body_condition="Less"):
    """total += x, at most `trips` times, while the round's number is below `last`."""
    body_nodes = [
        helper.make_node("Add", ["before", "x"], ["after"]),
        helper.make_node(body_condition, ["round", "last"], ["go_on"])
        if body_condition == "Less"
        else helper.make_node("Identity", ["go"], ["go_on"]),
    ]
    body = helper.make_graph(
        body_nodes,
        "body",
        [value("round", int64, []), value("go", bool, []), value("before", float32, [None])],
        [value("go_on", bool, []), value("after", float32, [None])],
    )
    inputs = ["trips" if trips else "", "start" if condition else "", "zero"]
    nodes = [
        helper.make_node("Sub", ["x", "x"], ["zero"]),
        helper.make_node("Loop", inputs, ["total"], "again", body=body),
    ]
    entries = [value("x", float32, ["n"]), value("last", int64, [])]
    entries += [value("trips", int64, [])] if trips else []
    entries += [value("start", bool, [])] if condition else []
    return model(nodes, entries, [value("total", float32, ["n"])])


@mark.parametrize("start", [None, True, False])
@mark.parametrize("trips", [None, 0, 1, 5])
@mark.parametrize("last", [0, 3, 9])
def test_loop_equals_onnxruntime(tmp_path, trips, start, last):
    if trips is None and start is None:
        return  # has no end; see the refusals
    path = saved(loop_model(trips is not None, start is not None), tmp_path)
    inputs = {"x": real(4), "last": number(last, int64)}
    inputs |= {"trips": number(trips, int64)} if trips is not None else {}
    inputs |= {"start": number(start, bool)} if start is not None else {}
    assert_same(path, inputs)


def if_model():
    """Where `go`: a loop of branches within; else what an outer node computed."""
    inner = [helper.make_node("Mul", ["sum", "x"], ["product"])]
    zero = helper.make_node("Constant", [], ["nothing"], value_floats=[0.5])
    branches = {
        "then_branch": helper.make_graph(inner, "then", [], [value("product", float32, [None])]),
        "else_branch": helper.make_graph([zero], "else", [], [value("nothing", float32, [None])]),
    }
    body = helper.make_graph(
        [
            helper.make_node("Greater", ["round", "one"], ["is_late"]),
            helper.make_node("If", ["is_late"], ["term"], "late", **branches),
            helper.make_node("Add", ["sum", "term"], ["next"]),
            helper.make_node("Identity", ["go_in"], ["go_out"]),
        ],
        "body",
        [value("round", int64, []), value("go_in", bool, []), value("sum", float32, [None])],
        [value("go_out", bool, []), value("next", float32, [None])],
    )
    loop = helper.make_node("Loop", ["four", "", "twice"], ["looped"], "loop", body=body)
    other = helper.make_node("Identity", ["twice"], ["kept"])
    choice = {
        "then_branch": helper.make_graph([loop], "yes", [], [value("looped", float32, [None])]),
        "else_branch": helper.make_graph([other], "no", [], [value("kept", float32, [None])]),
    }
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"]),
        helper.make_node("If", ["go"], ["y"], "choice", **choice),
    ]
    entries = [value("x", float32, ["n"]), value("go", bool, [])]
    constants = {"one": number(1, int64), "four": number(4, int64)}
    return model(nodes, entries, [value("y", float32, [None])], constants)


@mark.parametrize("go", [True, False])
def test_graphs_within_graphs_equal_onnxruntime(tmp_path, go):
    path = saved(if_model(), tmp_path)
    for length in (1, 5):
        assert_same(path, {"x": real(length), "go": number(go, bool)})


@mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value_int": 3}, number(3, int64)),
        ({"value_ints": [3, 4]}, vector(3, 4)),
        ({"value_float": 0.5}, number(0.5)),
        ({"value_floats": [0.5, 2]}, vector(0.5, 2, dtype=float32)),
        ({"value": onnx.numpy_helper.from_array(real(3, 400))}, real(3, 400)),
    ],
)
def test_constant(tmp_path, attributes, expected):
    node = helper.make_node("Constant", [], ["y"], **attributes)
    made = model([node], [], [value("y", expected.dtype, expected.shape)])
    found = open_torch(saved(made, tmp_path)).run({})["y"]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_results_are_freed_after_their_last_reader(tmp_path, monkeypatch):
    names = [f"v{index}" for index in range(20)]
    nodes = [helper.make_node("Exp", [name], [after]) for name, after in pairwise(names)]
    nodes.append(helper.make_node("Add", ["v1", names[-1]], ["y"]))
    ends = [value(name, float32, ["n"]) for name in ("v0", "y")]
    graph = open_torch(saved(model(nodes, ends[:1], ends[1:]), tmp_path))
    alive, most, run = weakref.WeakSet(), 0, torch_graph.OperatorStep.run

    def counted(step, scope):
        nonlocal most
        results = run(step, scope)
        alive.update(results)
        most = max(most, len(alive))
        return results

    monkeypatch.setattr(torch_graph.OperatorStep, "run", counted)
    graph.run({"v0": real(3)})
    assert most == 3  # v1, which the last node reads, the input of a node and its output


def refused_loop(**changes):
    made = loop_model(True, True)
    loop = made.graph.node[1]
    if "inputs" in changes:
        del loop.input[:]
        loop.input.extend(changes["inputs"])
    else:
        loop.output.append("rounds")
        loop.attribute[0].g.node.append(helper.make_node("Identity", ["round"], ["seen"]))
        loop.attribute[0].g.output.append(value("seen", int64, []))
    return made


def one_node(kind, count=1, **attributes):
    names = [f"x{index}" for index in range(count)]
    node = helper.make_node(kind, names, ["y"], "it", **attributes)
    made = model([node], [value(name, float32, [None] * 4) for name in names], [])
    made.graph.output.append(value("y", float32, [None] * 4))
    return made


def within_a_loop(node):
    made = loop_model(True, True)
    made.graph.node[1].attribute[0].g.node[0].CopyFrom(node)
    return made


def with_indices():
    made = one_node("MaxPool", kernel_shape=[2, 2])
    made.graph.node[0].output.append("where")
    return made


TEXT = helper.make_node("Constant", [], ["y"], "it", value_string="text")


@mark.parametrize(
    ("made", "message"),
    [
        (one_node("Einsum", 2, equation="abcd,abcd->abcd"), r"`it` \(Einsum\): operator Einsum"),
        (one_node("Det"), "operator Det is not supported by the torch backend; use the backend on"),
        (one_node("Conv", 2, auto_pad="SAME_UPPER"), "`auto_pad` is SAME_UPPER, the torch backend"),
        (one_node("MaxPool", kernel_shape=[2, 2], storage_order=1), "`storage_order` is 1"),
        (with_indices(), "output of indices"),
        (
            one_node("MaxPool", kernel_shape=[2, 2], pads=[0, 0, 1, 1], ceil_mode=1),
            "uneven or wide `pads` with `ceil_mode`",
        ),
        (one_node("AveragePool", kernel_shape=[2, 2], dilations=[2, 2]), "`dilations` other"),
        (one_node("Cast", to=TensorProto.BFLOAT16), "element type BFLOAT16"),
        (one_node("ArgMax", select_last_index=1), "`select_last_index` is 1"),
        (resize_model("cubic", HALF), "`mode` is cubic, the torch backend takes nearest or linear"),
        (resize_model("linear", "asymmetric"), "`coordinate_transformation_mode` is asymmetric"),
        (resize_model("linear", HALF, antialias=1), "`antialias` is 1"),
        (model([TEXT], [], [value("y", float32, [])]), "`value_string`"),
        (model([], [], [], {"text": np.array(["a"], object)}), "constant `text`: .* STRING"),
        (refused_loop(), "outputs that collect every round"),
        (refused_loop(inputs=["", "", "zero"]), "the loop has no end"),
        (
            within_a_loop(helper.make_node("Det", ["before"], ["after"], "deep")),
            r"`deep` \(Det\)",
        ),
        (
            within_a_loop(helper.make_node("Reshape", ["before", "x"], ["after"], allowzero=1)),
            r"`0` \(Reshape\): `allowzero` is 1",
        ),
    ],
)
def test_what_is_not_implemented_is_refused_when_opened(tmp_path, made, message):
    with raises(ArtifactError, match=message) as caught:
        open_torch(saved(made, tmp_path))
    assert "\n" not in str(caught.value)


@mark.parametrize("opset", [17, 21])
def test_other_opsets_are_refused(tmp_path, opset):
    made = one_node("Exp")
    made.opset_import[0].version = opset
    with raises(ArtifactError, match=f"opset {opset}, the torch backend takes 18 to 20"):
        open_torch(saved(made, tmp_path))


def test_sparse_constants_and_foreign_types_are_refused(tmp_path):
    made = one_node("Exp")
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    with raises(ArtifactError, match="`x0` has the type BFLOAT16"):
        open_torch(saved(made, tmp_path))
    made = one_node("Exp")
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [0])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [3]))
    with raises(ArtifactError, match="sparse constants"):
        open_torch(saved(made, tmp_path))


def test_number_of_threads(tmp_path):
    before = torch.get_num_threads()
    try:
        path = saved(one_node("Exp"), tmp_path)
        open_torch(path, threads=3)
        assert torch.get_num_threads() == 3
        open_torch(path)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
