"""TensorRT itself: graphs are built, opened and run on a GPU, and compared with onnxruntime.

Skipped where TensorRT or a GPU is missing, with the reason; then nothing of this has been shown.
"""

import threading

import numpy as np
import onnx
from onnx import TensorProto, helper
from pytest import fixture, importorskip, mark, raises, skip

from wsss.errors import ArtifactError, ShapeError, WsssError
from wsss.export.graphs.walk import walk_model
from wsss.export.tensorrt import EngineSettings, build_engine, profile_from_sizes
from wsss.runtime.backends.tensorrt_backend import open_plan

pytestmark = mark.tensorrt

SIZES = {"batch": [1, 2, 3], "height": [1, 20, 40], "width": [1, 24, 48]}
AXES = {"maps": (1, 3, 5), "channels": (4, 8, 8)}
SHAPES = [(1, 1, 1, 1), (2, 3, 20, 24), (3, 5, 40, 48), (1, 3, 13, 17), (2, 1, 1, 48)]
"""(batch, maps, height, width): the corners of the profile, its middle and odd sizes."""


@fixture(scope="module", autouse=True)
def machine():
    """Skips with the reason; never passes without TensorRT having worked."""
    importorskip("tensorrt", reason="needs TensorRT: pip install 'wsss[tensorrt]'")
    importorskip("onnxruntime", reason="needs onnxruntime to compare with")
    torch = importorskip("torch", reason="needs torch for device memory")
    if not torch.cuda.is_available():
        skip("needs a CUDA device that torch finds")


def in_onnxruntime(model, feeds):
    """Outputs by name, of the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def build_and_open(model, folder, settings=None, allow_host_code=False):
    """A plan of a model whose axes have the names above."""
    graph = folder / "graph.onnx"
    onnx.save(model, graph)
    profile = profile_from_sizes(graph, SIZES, AXES)
    info = build_engine(graph, folder, profile=profile, settings=settings)
    assert info.path.stat().st_size == info.num_bytes
    return info, open_plan(info.path, allow_host_code=allow_host_code)


def walk_feeds(source, batch, maps, height, width):
    generator = np.random.default_rng(0)
    planes = {"affinity": 34, "features": 8}[source]
    return {
        "scores": generator.random((batch, maps, height, width), np.float32),
        source: generator.random((batch, planes, height, width), np.float32),
    }


def bytes_model():
    """uint8 in and out, a type that TensorRT has at its borders only."""
    axes = ["batch", "height", "width", 3]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, axes)
    half = helper.make_tensor_value_info("half", TensorProto.UINT8, axes)
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "two"], ["halves"]),
        helper.make_node("Floor", ["halves"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["half"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(nodes, "bytes", [image], [half], [two])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@fixture(scope="module", params=["affinity", "features"])
def walk(request, tmp_path_factory):
    model = walk_model(source=request.param)
    _, plan = build_and_open(model, tmp_path_factory.mktemp(request.param))
    yield request.param, model, plan
    plan.close()


@mark.parametrize("shape", SHAPES)
def test_the_walk_equals_onnxruntime(walk, shape):
    source, model, plan = walk
    feeds = walk_feeds(source, *shape)
    found = plan.run(feeds)["walked"]
    expected = in_onnxruntime(model, feeds)["walked"]
    # float32 over up to 73 steps, summed in another order; the polynomial itself is the same.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_plan_describes_the_walk(walk):
    source, _, plan = walk
    description = plan.describe()
    assert (description.backend, description.device) == ("tensorrt", "cuda")
    assert {spec.name for spec in description.inputs} == {"scores", source}
    assert [(spec.name, spec.dtype) for spec in description.outputs] == [("walked", "float32")]


def test_sizes_outside_of_the_profile_are_refused(walk):
    source, _, plan = walk
    with raises(ShapeError, match="this plan takes"):
        plan.run(walk_feeds(source, 1, 3, 41, 24))


def test_threads_share_a_plan(walk):
    source, model, plan = walk
    feeds = {number: walk_feeds(source, 1, 3, 4 + number, 24) for number in range(4)}
    found = {}

    def call(number):
        found[number] = [plan.run(feeds[number])["walked"] for _ in range(5)]

    threads = [threading.Thread(target=call, args=(number,)) for number in feeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, results in found.items():
        expected = in_onnxruntime(model, feeds[number])["walked"]
        for result in results:
            np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)


def test_bytes_in_and_out(tmp_path):
    model = bytes_model()
    _, plan = build_and_open(model, tmp_path)
    feeds = {"image": np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)}
    assert [spec.dtype for spec in plan.describe().inputs] == ["uint8"]
    np.testing.assert_array_equal(plan.run(feeds)["half"], feeds["image"] // 2)


def test_a_second_build_reads_the_timing_cache(tmp_path):
    cache = tmp_path / "timing.cache"
    settings = EngineSettings(timing_cache=cache)
    build_and_open(bytes_model(), tmp_path, settings)
    assert cache.stat().st_size > 0
    build_and_open(bytes_model(), tmp_path, settings)


def test_a_timing_cache_that_is_none_is_refused(tmp_path):
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"not a cache")
    with raises(ArtifactError, match="timing cache"):
        build_and_open(bytes_model(), tmp_path, EngineSettings(timing_cache=cache))


def test_version_compatible_plans_need_their_host_code(tmp_path):
    settings = EngineSettings(version_compatible=True)
    info, plan = build_and_open(bytes_model(), tmp_path, settings, allow_host_code=True)
    feeds = {"image": np.full((1, 4, 4, 3), 9, np.uint8)}
    np.testing.assert_array_equal(plan.run(feeds)["half"], feeds["image"] // 2)
    plan.close()
    with raises(ArtifactError, match="allow its host code"):
        open_plan(info.path)


def test_hardware_compatible_plans_say_so(tmp_path):
    info, plan = build_and_open(bytes_model(), tmp_path, EngineSettings(hardware_compatible=True))
    assert ".ampere_plus." in info.path.name
    feeds = {"image": np.full((1, 4, 4, 3), 9, np.uint8)}
    np.testing.assert_array_equal(plan.run(feeds)["half"], feeds["image"] // 2)


def test_an_operator_that_tensorrt_lacks_is_named(tmp_path):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    node = helper.make_node("Unique", ["x"], ["y"], "the_node")
    graph = helper.make_graph([node], "g", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with raises(WsssError, match=r"TensorRT cannot take 'graph.onnx': Unique 'the_node'"):
        build_and_open(model, tmp_path)


def test_files_that_are_no_plans_are_refused(tmp_path):
    path = tmp_path / "label.plan"
    path.write_bytes(b"not a plan")
    with raises(ArtifactError, match="built for another GPU or TensorRT version"):
        open_plan(path)
