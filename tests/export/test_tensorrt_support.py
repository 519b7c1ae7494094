"""Graphs that we emit against TensorRT's documented operators, and planted violations."""

from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from pytest import importorskip, mark, param

from wsss.export.graphs.walk import walk_model

from .tensorrt_support import EXTRACT, unsupported

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
UINT8, DOUBLE = TensorProto.UINT8, TensorProto.DOUBLE
IMAGE = ["batch", 3, "height", "width"]

EMITTED = [
    param(
        partial(walk_model, source=source, radius=radius, steps=steps),
        id=f"{source}-{radius}-{steps}",
    )
    for source in ("affinity", "features")
    for radius in (5, 10)
    for steps in (0, 1, 2, 256)
]
"""Graphs of this package; add yours as a function that makes a model."""


@mark.parametrize("make", EMITTED)
def test_emitted_graphs_hold_nothing_that_is_documented_as_unsupported(make):
    model = make()
    assert unsupported(model) == []
    assert model.graph.node


def test_every_node_of_the_walk_was_looked_at_bodies_included():
    """The checker's silence means something: with an empty extract it names every operator."""
    model = walk_model(source="features")
    kept = dict(EXTRACT["operators"])
    EXTRACT["operators"].clear()
    try:
        found = unsupported(model)
    finally:
        EXTRACT["operators"].update(kept)
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    (body,) = (attribute.g for attribute in loop.attribute if attribute.name == "body")
    assert len(found) == len(model.graph.node) + len(body.node)
    assert all("is not in the extract" in finding for finding in found)


@mark.parametrize("source", ["affinity", "features"])
@mark.parametrize("size", [(1, 1), (5, 9), (12, 17)])
def test_loop_of_the_walk_carries_one_shape(source, size):
    """TensorRT wants carried tensors of one shape; here it is measured, in onnxruntime.

    The shape is that of the tensors before the loop and after it, each size being computed by the
    body from what it was given: a body that changed it once would change it every time.
    """
    onnxruntime = importorskip("onnxruntime", reason="needs onnxruntime")
    model = walk_model(source=source)
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    carried = [*loop.input[2:], *loop.output]
    model.graph.output.extend(helper.make_tensor_value_info(n, FLOAT, None) for n in carried)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    planes = {"affinity": 34, "features": 6}[source]
    feeds = {"scores": (2, 3, *size), source: (2, planes, *size)}
    results = session.run(carried, {n: np.full(s, 0.5, np.float32) for n, s in feeds.items()})
    assert len(results) == 6
    assert len({result.shape for result in results}) == 1


def graph_of(nodes, inputs, outputs, constants=None, opset=18, domains=()):
    """A model of nodes; inputs and outputs are name -> (type, axes), constants arrays."""
    declared = [
        [helper.make_tensor_value_info(name, *kind) for name, kind in each.items()]
        for each in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", *declared, tensors)
    opsets = [helper.make_opsetid(domain, 1) for domain in domains]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *opsets])


def one(kind, inputs, outputs, constants=None, order=None, opset=18, **attributes):
    """A model of one node that takes all inputs, then all constants, or those of `order`."""
    order = [*inputs, *(constants or {})] if order is None else order
    node = helper.make_node(kind, order, list(outputs), "n", **attributes)
    return graph_of([node], inputs, outputs, constants, opset)


def loop_of(body_nodes, carried_axes, given_axes=None, scans=(), limit=None, condition="go"):
    """A model of a Loop that carries `x` through body nodes from `state` to `next`."""
    body = helper.make_graph(
        [*body_nodes, helper.make_node("Identity", [condition], ["go_on"])],
        "body",
        [
            helper.make_tensor_value_info("trip", INT64, []),
            helper.make_tensor_value_info("go", BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, carried_axes),
        ],
        [
            helper.make_tensor_value_info("go_on", BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, carried_axes),
            *(helper.make_tensor_value_info(name, FLOAT, None) for name in scans),
        ],
    )
    results = ["last", *(f"all_{name}" for name in scans)]
    node = helper.make_node("Loop", ["count", "", "x"], results, "n", body=body)
    inputs = {"x": (FLOAT, given_axes or carried_axes)}
    constants = {"limit": np.array(0.5, np.float32)}
    if limit is None:
        inputs["count"] = (INT64, [])
    else:
        constants["count"] = np.array(limit, np.int64)
    return graph_of([node], inputs, {name: (FLOAT, None) for name in results}, constants)


RELU = helper.make_node("Relu", ["state"], ["next"], "inner")
SCAN = helper.make_node("Abs", ["state"], ["seen"], "scan")
TOTAL = helper.make_node("ReduceSum", ["state"], ["total"], "total", keepdims=0)
STOP = helper.make_node("Less", ["total", "limit"], ["stop"], "stop")


def resize(**attributes):
    return one(
        "Resize",
        {"x": (FLOAT, IMAGE)},
        {"y": (FLOAT, None)},
        {"sizes": [1, 3, 8, 8]},
        order=["x", "", "", "sizes"],
        **attributes,
    )


def cast(source, target, *, via=None):
    """Input -> Cast -> output, or with a node between."""
    last = "y" if via is None else "z"
    nodes = [helper.make_node("Cast", ["x"], [last], "n", to=target)]
    if via:
        nodes.append(helper.make_node(via, ["z"], ["y"], "m"))
    return graph_of(nodes, {"x": (source, ["n"])}, {"y": (target, ["n"])})


def branches(names=("a", "b"), ranks=(1, 1)):
    graphs = []
    for name, rank in zip(names, ranks, strict=True):
        value = numpy_helper.from_array(np.zeros((1,) * rank, np.float32))
        nodes = [helper.make_node("Constant", [], [name], value=value)]
        output = helper.make_tensor_value_info(name, FLOAT, [1] * rank)
        graphs.append(helper.make_graph(nodes, name, [], [output]))
    node = helper.make_node("If", ["c"], ["y"], "n", then_branch=graphs[0], else_branch=graphs[1])
    return graph_of([node], {"c": (BOOL, [])}, {"y": (FLOAT, None)})


X, Y = {"x": (FLOAT, IMAGE)}, {"y": (FLOAT, None)}
VECTOR = {"x": (FLOAT, ["n"])}
VIOLATIONS = {
    "operator": (one("Unique", VECTOR, Y), "Unique 'n' is not supported"),
    "not in the extract": (one("Sin", X, Y), "Sin 'n' is not in the extract"),
    "domain": (
        graph_of(
            [helper.make_node("Gelu", ["x"], ["y"], "n", domain="com.microsoft")],
            X,
            {"y": (FLOAT, IMAGE)},
            domains=["com.microsoft"],
        ),
        "Gelu 'n' domain com.microsoft is not supported",
    ),
    "opset": (one("Relu", X, Y, opset=8), "opset 8 is not in 9 to 24"),
    "double": (one("Relu", {"x": (DOUBLE, ["n"])}, {"y": (DOUBLE, None)}), "tensor `x` is DOUBLE"),
    "whole numbers": (
        one("Clip", {"x": (INT64, ["n"])}, {"y": (INT64, None)}, {"low": np.int64(0)}),
        "Clip 'n' on INT64 `x`, supported are FP32, FP16, BF16",
    ),
    "type of a later input": (
        one("Max", {"x": (BOOL, ["n"]), "z": (BOOL, ["n"])}, {"y": (BOOL, None)}),
        "Max 'n' on BOOL `z`",
    ),
    "nonzero of booleans": (
        one("NonZero", {"x": (BOOL, ["n"])}, {"y": (INT64, None)}),
        "NonZero 'n' on BOOL `x`, supported are FP32, FP16",
    ),
    "shape of bytes": (
        one("Shape", {"x": (UINT8, IMAGE)}, {"y": (INT64, None)}),
        "Shape 'n' on UINT8 `x`",
    ),
    "bytes past the border": (cast(FLOAT, UINT8, via="Identity"), "Identity 'm' on UINT8 `z`"),
    "bytes within": (
        cast(FLOAT, UINT8, via="Identity"),
        "Cast 'n' to UINT8 `z`, which is no output of the network",
    ),
    "bytes from a constant": (
        one("Cast", {}, Y, {"x": np.zeros(3, np.uint8)}, to=FLOAT),
        "Cast 'n' from UINT8 `x`, which is no input of the network",
    ),
    "cubic": (resize(mode="cubic"), "Resize 'n' has mode cubic, supported are nearest, linear"),
    "crop and resize": (
        resize(mode="linear", coordinate_transformation_mode="half_pixel_symmetric", opset=19),
        "has coordinate_transformation_mode half_pixel_symmetric",
    ),
    "antialias": (resize(mode="linear", antialias=1), "Resize 'n' has antialias 1"),
    "aspect ratio": (
        resize(mode="linear", keep_aspect_ratio_policy="not_larger"),
        "has keep_aspect_ratio_policy not_larger",
    ),
    "some axes by scales": (
        one("Resize", X, Y, {"scales": np.float32([2, 2])}, order=["x", "", "scales"], axes=[2, 3]),
        "Resize 'n' scales axes [2, 3]",
    ),
    "axes computed": (
        one("ReduceMax", {**X, "axes": (INT64, [1])}, Y),
        "ReduceMax 'n' has axes `axes`, which must be an initializer",
    ),
    "axes computed from constants": (
        graph_of(
            [
                helper.make_node("Add", ["one", "one"], ["two"], "a"),
                helper.make_node("ReduceMax", ["x", "two"], ["y"], "n"),
            ],
            X,
            Y,
            {"one": np.int64([1])},
        ),
        "ReduceMax 'n' has axes `two`, which must be an initializer",
    ),
    "squeezed axes computed": (
        one("Squeeze", {**X, "axes": (INT64, [1])}, Y),
        "Squeeze 'n' has axes `axes`, which must be constant",
    ),
    "squeeze without axes": (one("Squeeze", X, Y), "Squeeze 'n' without axes takes a fixed shape"),
    "topk": (
        graph_of(
            [helper.make_node("TopK", ["x", "k"], ["y", "i"], "n", sorted=0)],
            {"x": (FLOAT, [5000])},
            {"y": (FLOAT, None), "i": (INT64, None)},
            {"k": np.int64([4000])},
        ),
        "TopK 'n' has K `k`, which must be a constant below 3840",
    ),
    "unsorted": (
        graph_of(
            [helper.make_node("TopK", ["x", "k"], ["y", "i"], "n", sorted=0)],
            {"x": (FLOAT, [50])},
            {"y": (FLOAT, None), "i": (INT64, None)},
            {"k": np.int64([4])},
        ),
        "TopK 'n' has sorted 0, supported are 1",
    ),
    "remainder of fractions": (
        one("Mod", VECTOR, Y, {"by": np.float32([2])}),
        "Mod 'n' without fmod takes whole numbers, found FP32 `x`",
    ),
    "indices of a pool": (
        one("MaxPool", X, {**Y, "i": (INT64, None)}, kernel_shape=[2, 2]),
        "MaxPool 'n' gives `i`, supported are its first 1 outputs",
    ),
    "dilated pool": (
        one("MaxPool", X, Y, kernel_shape=[2, 2], dilations=[2, 2]),
        "MaxPool 'n' has dilations [2, 2], supported are ones",
    ),
    "pool in one dimension": (
        one("AveragePool", {"x": (FLOAT, [1, 3, 8])}, Y, kernel_shape=[2]),
        "AveragePool 'n' has 1 spatial axes, supported are [2, 3]",
    ),
    "zero point": (
        one(
            "QuantizeLinear",
            X,
            {"y": (TensorProto.INT8, None)},
            {"s": np.float32(0.1), "zero": np.int8(3)},
        ),
        "QuantizeLinear 'n' has y_zero_point `zero`, which must be a constant of zeros",
    ),
    "grid of a volume": (
        one(
            "GridSample",
            {"x": (FLOAT, [1, 1, 4, 4, 4]), "g": (FLOAT, [1, 4, 4, 4, 3])},
            Y,
            opset=20,
        ),
        "GridSample 'n' takes `x` of shape [1, 1, 4, 4, 4], supported are [4] axes",
    ),
    "reduction": (
        one(
            "ScatterND",
            VECTOR,
            Y,
            {"i": np.int64([[0]]), "u": np.float32([1])},
            reduction="add",
        ),
        "ScatterND 'n' has reduction add, supported are none",
    ),
    "sparse constant": (
        graph_of(
            [helper.make_node("Constant", [], ["y"], "n", value_string="a")],
            {},
            {"y": (TensorProto.STRING, [])},
        ),
        "Constant 'n' has value_string, which is not supported",
    ),
    "branches under one name": (branches(names=("a", "a")), "that give `a`: the names must differ"),
    "branches of two ranks": (branches(ranks=(1, 2)), "If 'n' gives `a` of 1 axes or of 2"),
    "carried shape": (
        loop_of(
            [helper.make_node("Concat", ["state", "state"], ["next"], "inner", axis=0)],
            ["m"],
            [3],
            limit=4,
        ),
        "carries `state`, whose shape changes: [[3], [None], [None], [6]]",
    ),
    "carried rank": (loop_of([RELU], ["m", "m"], [3]), "carries `state`, whose shape changes"),
    "scan of unknown length": (
        loop_of([RELU, SCAN], [3], scans=["seen"]),
        "Loop 'n' has scan outputs of a length that is known only when it runs",
    ),
    "scan that may end early": (
        loop_of([RELU, SCAN, TOTAL, STOP], [3], scans=["seen"], limit=4, condition="stop"),
        "Loop 'n' has scan outputs of a length that is known only when it runs",
    ),
    "operator in a body": (
        loop_of([helper.make_node("Sin", ["state"], ["next"], "inner")], [3]),
        "Sin 'inner' is not in the extract",
    ),
}


@mark.parametrize("name", VIOLATIONS)
def test_planted_violations_are_found(name):
    model, message = VIOLATIONS[name]
    assert any(message in finding for finding in unsupported(model)), unsupported(model)


CLEAN = {
    "bytes in": cast(UINT8, FLOAT),
    "bytes out": cast(FLOAT, UINT8),
    "bilinear": resize(mode="linear"),
    "corners": resize(mode="linear", coordinate_transformation_mode="align_corners"),
    "all axes by scales": one(
        "Resize", X, Y, {"s": np.float32([1, 1, 2, 2])}, order=["x", "", "s"], axes=[0, 1, 2, 3]
    ),
    "constant axes": one("ReduceSum", X, Y, {"axes": np.int64([1])}),
    "squeeze of a fixed shape": one("Squeeze", {"x": (FLOAT, [1, 3])}, Y),
    "remainder": one("Mod", {"x": (INT64, ["n"])}, {"y": (INT64, None)}, {"by": np.int64([2])}),
    "remainder of fractions": one("Mod", VECTOR, Y, {"by": np.float32([2])}, fmod=1),
    "branches": branches(),
    "loop": loop_of([RELU], [3]),
    "scan": loop_of([RELU, SCAN], [3], scans=["seen"], limit=4),
    "constants of constants": graph_of(
        [
            helper.make_node("Add", ["one", "one"], ["two"], "a"),
            helper.make_node("Unsqueeze", ["x", "two"], ["y"], "b"),
        ],
        X,
        Y,
        {"one": np.int64([1])},
    ),
    "quantised": one(
        "QuantizeLinear",
        X,
        {"y": (TensorProto.INT8, None)},
        {"s": np.float32(0.1), "z": np.int8(0)},
    ),
}


@mark.parametrize("name", CLEAN)
def test_what_is_documented_as_supported_passes(name):
    assert unsupported(CLEAN[name]) == []


def test_planted_models_are_valid_onnx():
    """A finding shall come from the planted fault, not from a broken model."""
    models = {name: model for name, (model, _) in VIOLATIONS.items()} | CLEAN
    for model in models.values():
        inferred = shape_inference.infer_shapes(model)
        for value in inferred.graph.output:
            value.type.tensor_type.shape.SetInParent()  # the checker wants one, be it empty
        onnx.checker.check_model(inferred)


def test_an_input_with_a_default_is_a_constant():
    """As an input alone its axes would be computed; with a default TensorRT knows them."""
    model = one("ReduceMax", {**X, "axes": (INT64, [1])}, Y)
    assert unsupported(model)
    model.graph.initializer.append(numpy_helper.from_array(np.int64([1]), "axes"))
    assert unsupported(model) == []


def test_extract_states_its_source_and_knows_its_operators():
    assert "Apache-2.0" in EXTRACT["licence"]
    assert "10.15" in EXTRACT["source"]
    for name, row in EXTRACT["operators"].items():
        schema = onnx.defs.get_schema(name, EXTRACT["opsets"][1], "")
        assert row["types"], name
        assert set(row) - {"types", "note"} <= set(EXTRACT["rules"]), name
        inputs = {formal.name for formal in schema.inputs}
        for rule in ("initializer", "constant", "zero", "inputs"):
            assert set(row.get(rule, ())) <= inputs, name
        assert {*row.get("rank", ()), *row.get("below", ())} <= inputs, name
        attributes = {*row.get("attributes", ()), *row.get("forbidden", ()), *row.get("ones", ())}
        assert attributes <= set(schema.attributes), name
    for name in EXTRACT["unsupported"]:
        assert onnx.defs.get_schema(name, EXTRACT["opsets"][1], "")
        assert name not in EXTRACT["operators"]
