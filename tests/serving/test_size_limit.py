"""An image above the limit is refused by every model before it costs memory or time."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

import onnxruntime
from triton_requests import Arrays, ask, classes, client_of, images, resident_bytes
from triton_server import triton_server

from wsss.errors import DataError
from wsss.export.graphs.subgraph import limit_sizes
from wsss.export.triton import RepositoryOptions, write_repository
from wsss.runtime.backends.triton.backend import open_triton
from wsss.runtime.serving.local_server import LocalServer

MAX_PIXELS = 64 * 64
LARGE = (1500, 1400)
"""As bytes 6.3 MB; what it costs a model without limit is measured by the control below."""
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def limited(
    triton_environment: object, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    """A server of models that take up to 64 x 64 pixels."""
    options = RepositoryOptions(decode=True, intra_op_threads=1, max_pixels=MAX_PIXELS)
    folder = tmp_path_factory.mktemp("limited") / "models"
    with triton_server(write_repository(bundle, folder, options).folder) as server:
        yield server


def requests_of(size: tuple[int, int]) -> dict[str, Arrays]:
    """What each model takes, for an image of a size; the maps of `refine` are of a small one."""
    image = images(1, size)
    file = io.BytesIO()
    Image.fromarray(image[0]).save(file, "PNG")
    maps = {
        "cam": np.zeros((1, 3, 8, 8), np.float32),
        "probabilities": np.ones((1, 3), np.float32),
        "affinity": np.zeros((1, 12, 4, 4), np.float32),
    }
    return {
        "cam": {"image": image},
        "affinity": {"image": image},
        "segmenter": {"image": image},
        "label": {"image": image, "present": classes(1)},
        "refine": {"image": image, "present": classes(1), **maps},
        "label_ensemble": {"image": image},
        "label_encoded": {"encoded": np.array([[file.getvalue()]], object)},
        "decode": {"encoded": np.array([[file.getvalue()]], object)},
    }


FIRST_OUTPUTS = {"cam": "cam", "affinity": "affinity", "decode": "image"}


@pytest.mark.triton
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_large_images_are_refused_and_others_are_answered(
    limited: LocalServer, bundle: Path, protocol: str
) -> None:
    client, errors, answers = client_of(limited, protocol), list[BaseException](), list[int]()
    small, large = requests_of((48, 64)), requests_of(LARGE)
    num_pairs = onnx.load(bundle / "affinity.onnx").graph.output[0].type.tensor_type.shape.dim[1]
    large["refine"]["affinity"] = np.zeros((1, num_pairs.dim_value, 4, 4), np.float32)
    expected = ask(client, "label", small["label"], ["label"])["label"]
    done = threading.Event()

    def keep_asking() -> None:
        own = client_of(limited, protocol)
        try:
            while not done.is_set():
                found = ask(own, "label", small["label"], ["label"])["label"]
                np.testing.assert_array_equal(found, expected)
                answers.append(1)
        except BaseException as error:
            errors.append(error)

    def refused(model: str) -> str:
        with pytest.raises(Exception) as caught:
            ask(client, model, large[model], [FIRST_OUTPUTS.get(model, "label")])
        return str(caught.value)

    texts = {model: refused(model) for model in large}  # buffers that are taken once
    before = resident_bytes(limited, "VmHWM")
    other = threading.Thread(target=keep_asking)
    other.start()
    try:
        for _ in range(5):
            for model in large:
                texts[model] = refused(model)
    finally:
        done.set()
        other.join()
    assert not errors and answers
    for model, text in texts.items():
        if model in ("decode", "label_encoded"):
            assert f"1500 x 1400, expected 1 to {MAX_PIXELS} pixels: resize it" in text
        else:
            assert f"image_must_have_1_to_{MAX_PIXELS}_pixels" in text
            assert "Input shape:{1,1500,1400,3}" in text
    # Buffers of the server and of its stubs; the good request may come beside them.
    assert resident_bytes(limited, "VmHWM") < before + 128 * MEBIBYTE


@pytest.mark.triton
@pytest.mark.slow
def test_without_a_limit_such_an_image_costs_much_more(
    triton_environment: object, bundle: Path, tmp_path: Path
) -> None:
    """So that the bound above could be missed."""
    options = RepositoryOptions(intra_op_threads=1)
    write_repository(bundle, tmp_path / "models", options)
    explicit = ["--model-control-mode=explicit", "--load-model=label"]
    with triton_server(tmp_path / "models", options=explicit) as server:
        before = resident_bytes(server, "VmHWM")
        ask(client_of(server, "grpc"), "label", requests_of(LARGE)["label"], ["label"])
        assert resident_bytes(server, "VmHWM") > before + 512 * MEBIBYTE


@pytest.mark.triton
def test_our_client_tells_it_and_goes_on(limited: LocalServer) -> None:
    graph = open_triton(f"grpc://{limited.grpc}", "segmenter", retries=0)
    try:
        expected = graph.run({"image": images(1, (48, 64))})
        with pytest.raises(DataError, match=f"image_must_have_1_to_{MAX_PIXELS}_pixels"):
            graph.run({"image": images(1, LARGE)})
        found = graph.run({"image": images(1, (48, 64))})
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    finally:
        graph.close()


def session(model: onnx.ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("shape", [("height", "width", 3), (3, "height", "width")])
@pytest.mark.parametrize("count", [1, 2])
def test_the_limit_is_exact_and_counts_each_image(count: int, shape: tuple[Any, ...]) -> None:
    """A graph that reads its input in a subgraph, too, gives the same up to the last pixel."""
    axes = ["batch", *shape]
    helper, kind = onnx.helper, onnx.TensorProto.UINT8
    inner = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["inner"])],
        "inner",
        [],
        [helper.make_tensor_value_info("inner", kind, axes)],
    )
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("If", ["which"], ["copy"], then_branch=inner, else_branch=inner)],
            "copy",
            [helper.make_tensor_value_info("image", kind, axes)],
            [helper.make_tensor_value_info("copy", kind, axes)],
            [helper.make_tensor("which", onnx.TensorProto.BOOL, (), [True])],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    limit_sizes(model, 12)
    onnx.checker.check_model(model, full_check=True)
    opened = session(model)
    taken, refused = ((3, 4), (1, 12), (12, 1), (1, 1)), ((1, 13), (13, 1), (99, 99), (0, 4))
    for height, width in (*taken, *refused):
        sizes = {"height": height, "width": width}
        image = np.ones((count, *(sizes.get(axis, axis) for axis in shape)), np.uint8)
        if (height, width) in taken:
            np.testing.assert_array_equal(opened.run(None, {"image": image})[0], image)
        else:
            with pytest.raises(Exception, match="image_must_have_1_to_12_pixels"):
                opened.run(None, {"image": image})
