"""The ONNX form of boundary affinities equals `affinity_from_boundary`, on grids of any size."""

import onnx
import torch
from onnx import TensorProto, helper
from pytest import importorskip, mark, raises

from wsss.errors import ConfigError
from wsss.export.graphs.builder import IR_VERSION, OPSET
from wsss.export.graphs.pairs import add_boundary_affinity
from wsss.runtime.refine.boundary_affinity import affinity_from_boundary

onnxruntime = importorskip("onnxruntime", reason="needs onnxruntime")

SIZES = [(1, 1), (1, 13), (11, 1), (2, 3), (3, 30), (12, 17)]


def opened(**settings):
    nodes, constants = [], []
    add_boundary_affinity(nodes, constants, boundary="boundary", affinity="affinity", **settings)
    boundary, affinity = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", planes, "h", "w"])
        for name, planes in (("boundary", 1), ("affinity", None))
    )
    graph = helper.make_graph(nodes, "boundary", [boundary], [affinity], constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


@mark.parametrize("borders", ["full", "reference"])
@mark.parametrize("radius", [2, 5])
def test_equals_torch(radius, borders):
    session = opened(radius=radius, beta=10.0, borders=borders)
    for height, width in SIZES:
        generator = torch.Generator().manual_seed(height)
        boundary = torch.rand(2, 1, height, width, generator=generator)
        expected = affinity_from_boundary(boundary, radius=radius, beta=10.0, borders=borders)
        (found,) = session.run(None, {"boundary": boundary.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-6)


def test_a_wall_parts_its_sides():
    boundary = torch.zeros(1, 1, 6, 9)
    boundary[..., 4] = 1
    (found,) = opened(radius=5).run(None, {"boundary": boundary.numpy()})
    across = found[0, 1]  # the partner two cells to the right
    assert (across[:, 2:5] == 0).all() and (across[:, :2] == 1).all()


def test_exponents_are_checked():
    with raises(ConfigError, match="`beta` is 0"):
        opened(beta=0)
