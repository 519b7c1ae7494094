"""Equal parts of a graph become one, and what it computes stays the same."""

import numpy as np
from onnx import TensorProto, helper
from pytest import importorskip

from wsss.export.graphs.builder import IR_VERSION, OPSET, Builder
from wsss.export.graphs.merge import merge_equal

onnxruntime = importorskip("onnxruntime", reason="needs onnxruntime")


def drawn(values):
    """Two branches that read constants of equal or unlike values, and a sum of both."""
    nodes, constants = [], []
    graph = Builder(nodes, constants, "")
    first, second = (graph("Relu", graph("Mul", "x", graph.floats(*numbers))) for numbers in values)
    graph("Add", first, second, output="y")
    return nodes, constants


def run(nodes, constants, x):
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph(nodes, "drawn", tensors[:1], tensors[1:], constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x})[0]


def test_equal_branches_become_one():
    drawing = drawn([(2, -1), (2, -1)])
    nodes, constants = merge_equal(*drawing)
    assert [node.op_type for node in nodes] == ["Mul", "Relu", "Add"] and len(constants) == 1
    x = np.array([3, -4], np.float32)
    np.testing.assert_array_equal(run(nodes, constants, x), run(*drawing, x))


def test_one_bit_keeps_them_apart():
    drawing = drawn([(2, -1), (2, np.nextafter(np.float32(-1), np.float32(0)))])
    nodes, constants = merge_equal(*drawing)
    assert len(nodes) == 5 and len(constants) == 2
    x = np.array([3, -4], np.float32)
    np.testing.assert_array_equal(run(nodes, constants, x), run(*drawing, x))


def test_shapes_types_and_attributes_count():
    nodes, constants = [], []
    graph = Builder(nodes, constants, "")
    graph("Flatten", "x", axis=0)
    graph("Flatten", "x", axis=1)
    graph.constant(np.zeros((1, 2), np.float32))
    graph.constant(np.zeros((2, 1), np.float32))
    graph.constant(np.zeros((2, 1), np.int32))
    merged = merge_equal(nodes, constants)
    assert len(merged[0]) == 2 and len(merged[1]) == 3


def test_subgraphs_read_what_is_left():
    nodes, constants = [], []
    graph = Builder(nodes, constants, "")
    kept, gone = graph("Neg", "x"), graph("Neg", "x")
    inner = Builder([], constants, "inner/")
    inner("Mul", gone, graph.floats(2), output="inner/y")
    made = helper.make_tensor_value_info("inner/y", TensorProto.FLOAT, [2])
    body = helper.make_graph(inner.nodes, "body", [], [made])
    condition = graph.constant(np.array(True))
    nodes.append(helper.make_node("If", [condition], ["y"], then_branch=body, else_branch=body))
    merged, constants = merge_equal(nodes, constants)
    assert [node.op_type for node in merged] == ["Neg", "If"]
    assert merged[1].attribute[0].g.node[0].input[0] == kept
    x = np.array([3, -4], np.float32)
    np.testing.assert_array_equal(run(merged, constants, x), -2 * x)
