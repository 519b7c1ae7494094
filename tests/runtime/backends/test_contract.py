"""What every backend does alike, seen through one small graph."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from onnx import helper
from pytest import fixture, importorskip, mark, param, raises, skip
from small_graphs import model, saved, value

from wsss.errors import ArtifactError, DataError, ShapeError, WsssError
from wsss.runtime.backends.contract import TensorSpec, axis_sizes
from wsss.runtime.backends.onnxruntime_backend import has_cuda
from wsss.runtime.backends.registry import open_graph

importorskip("onnxruntime", reason="needs onnxruntime")

FINDS_GPU = {"onnxruntime": has_cuda}
CHOICES = [(name, "cpu") for name in FINDS_GPU]
CHOICES += [param((name, "cuda"), marks=mark.gpu) for name, found in FINDS_GPU.items() if found()]


@fixture(params=CHOICES, ids="-".join)
def choice(request):
    """(backend, device)."""
    return request.param


def opened(choice, path):
    backend, device = choice
    return open_graph(path, backend=backend, device=device, threads=1)


@mark.gpu
@mark.parametrize("backend", FINDS_GPU)
def test_all_of_this_runs_on_a_gpu(backend):
    if not FINDS_GPU[backend]():
        skip(f"needs {backend} with a CUDA device, the other tests saw the CPU only")
    assert (backend, "cuda") in [choice.values[0] for choice in CHOICES[len(FINDS_GPU) :]]


def brighten_model():
    """Images times `gain` plus a mask; `ones` is a constant, `same` an input."""
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=1),
        helper.make_node("Mul", ["real", "gain"], ["product"]),
        helper.make_node("Unsqueeze", ["mask", "one"], ["plane"]),
        helper.make_node("Add", ["product", "plane"], ["bright"]),
        helper.make_node("Shape", ["image"], ["size"], start=2),
        helper.make_node("Identity", ["mask"], ["same"]),
    ]
    inputs = [
        value("gain", "float32", [1]),
        value("image", "uint8", ["batch", 3, "height", "width"]),
        value("mask", "float32", ["batch", "height", "width"]),
    ]
    outputs = [
        value("bright", "float32", ["batch", 3, "height", "width"]),
        value("size", "int64", [2]),
        value("same", "float32", ["batch", "height", "width"]),
        value("one", "int64", [1]),
    ]
    constants = {"gain": np.array([2], np.float32), "one": np.array([1])}
    return model(nodes, inputs, outputs, constants)


@fixture
def graph(choice, tmp_path):
    made = opened(choice, saved(brighten_model(), tmp_path))
    yield made
    made.close()


def inputs(batch=2, height=3, width=4, **changes):
    generator = np.random.default_rng(batch + height + width)
    image = generator.integers(0, 256, (batch, 3, height, width), np.uint8)
    mask = generator.random((batch, height, width), np.float32)
    return {"image": image, "mask": mask} | changes


def expected(given, gain=2):
    return given["image"].astype(np.float32) * gain + given["mask"][:, None]


def test_describe(graph, choice):
    found = graph.describe()
    assert (found.backend, found.device) == choice
    assert found.inputs == (
        TensorSpec("image", "uint8", ("batch", 3, "height", "width")),
        TensorSpec("mask", "float32", ("batch", "height", "width")),
        TensorSpec("gain", "float32", (1,), is_optional=True),
    )
    assert found.outputs == (
        TensorSpec("bright", "float32", ("batch", 3, "height", "width")),
        TensorSpec("size", "int64", (2,)),
        TensorSpec("same", "float32", ("batch", "height", "width")),
        TensorSpec("one", "int64", (1,)),
    )


def test_every_axis_has_a_size_or_a_name():
    assert axis_sizes("maps", ["batch", None, 3, ""]) == ("batch", "maps_1", 3, "maps_3")


@mark.parametrize("sizes", [(1, 1, 1), (2, 3, 4), (3, 17, 1), (1, 31, 45)])
def test_sizes_are_free(graph, sizes):
    for _ in range(2):
        given = inputs(*sizes)
        found = graph.run(given)
        assert list(found) == ["bright", "size", "same", "one"]
        assert found["bright"].dtype == np.float32
        np.testing.assert_array_equal(found["bright"], expected(given))
        np.testing.assert_array_equal(found["size"], sizes[1:])


@mark.parametrize("names", [["size"], ["size", "bright"], []])
def test_only_the_outputs_asked_for(graph, names):
    assert list(graph.run(inputs(), names)) == names


def test_default_can_be_replaced(graph):
    given = inputs()
    gain = np.array([-0.5], np.float32)
    found = graph.run({**given, "gain": gain}, ["bright"])
    np.testing.assert_array_equal(found["bright"], expected(given, -0.5))
    found = graph.run(given, ["bright"])
    np.testing.assert_array_equal(found["bright"], expected(given))


@mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image": np.zeros((1, 3, 2, 2))}, DataError, "`image` is float64, expected uint8"),
        ({"gain": np.ones(1)}, DataError, "`gain` is float64, expected float32"),
        ({"image": np.zeros((3, 2, 2), np.uint8)}, ShapeError, r"`image` is \(3, 2, 2\), expected"),
        ({"image": np.zeros((1, 4, 2, 2), np.uint8)}, ShapeError, r"expected \(batch, 3, height"),
        ({"mask": np.zeros((2, 3, 5), np.float32)}, ShapeError, "with batch 2, height 3, width 4"),
        ({"mask": np.zeros((2, 3, 0), np.float32)}, ShapeError, r"`mask` is \(2, 3, 0\)"),
        ({"gain": np.ones(2, np.float32)}, ShapeError, r"`gain` is \(2,\), expected \(1\)"),
        ({"picture": np.zeros(1)}, DataError, "unknown input `picture`: the graph takes image, ma"),
    ],
)
def test_wrong_inputs_are_refused(graph, changes, error, message):
    with raises(error, match=message):
        graph.run(inputs(**changes))


def test_missing_input_and_unknown_output_are_refused(graph):
    given = inputs()
    with raises(DataError, match=r"`mask` is missing: expected float32 \(batch, height, width\)"):
        graph.run({"image": given["image"]})
    with raises(DataError, match="unknown output `label`: the graph gives bright, size"):
        graph.run(given, ["bright", "label"])


def test_arrays_need_not_be_contiguous_or_writable(graph):
    given = inputs(2, 6, 8)
    views = {name: array[..., ::2, ::-1] for name, array in given.items()}
    for array in views.values():
        array.flags.writeable = False
    np.testing.assert_array_equal(graph.run(views)["bright"], expected(views))


def test_results_belong_to_the_caller(graph):
    given = inputs()
    before = given["mask"].copy()
    for found in (graph.run(given), graph.run(given)):
        np.testing.assert_array_equal(found["one"], [1])
        for array in found.values():
            array[...] = 0
    np.testing.assert_array_equal(given["mask"], before)


def test_threads_share_a_graph(graph):
    many = [inputs(1 + index % 3, 5 + index, 7) for index in range(12)]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(graph.run, many))
    for given, found in zip(many, results, strict=True):
        np.testing.assert_array_equal(found["bright"], expected(given))


def test_closed_graph_does_not_run(graph):
    graph.close()
    graph.close()
    with raises(RuntimeError, match="closed"):
        graph.run(inputs())


def test_failure_within_the_graph_is_one_line(choice, tmp_path):
    halves = helper.make_node("Reshape", ["x", "shape"], ["y"], "halves")
    constants = {"shape": np.array([2, -1])}
    vector = [value("x", "float32", ["n"])]
    path = saved(model([halves], vector, [value("y", "float32", [2, None])], constants), tmp_path)
    graph = opened(choice, path)
    assert graph.run({"x": np.ones(6, np.float32)})["y"].shape == (2, 3)
    with raises(DataError, match=r"failed: .*check the sizes") as caught:
        graph.run({"x": np.ones(7, np.float32)})
    assert "\n" not in str(caught.value)


@mark.parametrize("content", [b"", b"\0", b"not a graph " * 9, b"\x08\x0a\x12\xff\xff"])
def test_damaged_file_is_one_line(choice, tmp_path, content):
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    with raises(ArtifactError, match=r"damaged\.onnx.*export it again$") as caught:
        opened(choice, path)
    assert "\n" not in str(caught.value)


def test_truncated_file_is_refused(choice, tmp_path):
    path = saved(brighten_model(), tmp_path)
    path.write_bytes(path.read_bytes()[:-60])
    with raises(ArtifactError, match=r"graph\.onnx"):
        opened(choice, path)


def test_absent_file_is_refused(choice, tmp_path):
    with raises(DataError, match=r"cannot read .*none\.onnx"):
        opened(choice, tmp_path / "none.onnx")


@mark.parametrize(("kind", "domain"), [("Dream", ""), ("Dream", "else.where")])
def test_unknown_operator_is_refused(choice, tmp_path, kind, domain):
    node = helper.make_node(kind, ["x"], ["y"], "dreamer", domain=domain)
    vector = [value(name, "float32", ["n"]) for name in "xy"]
    made = model([node], vector[:1], vector[1:], domains=[domain] if domain else [])
    with raises(WsssError, match="Dream") as caught:
        opened(choice, saved(made, tmp_path))
    assert "\n" not in str(caught.value)
