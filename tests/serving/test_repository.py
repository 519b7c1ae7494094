"""The repository that our code writes, in a real Triton: same labels as onnxruntime in process."""

import io
import itertools
import json
import shutil
import struct
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
from PIL import Image
from triton_requests import LABEL_OUTPUTS, Arrays, ask, classes, client_of, given, images
from triton_server import triton_server

from wsss.export.triton import RepositoryOptions, write_repository
from wsss.export.triton.configs import CONFIG, config_text, read_config
from wsss.runtime.bundle.open import MANIFEST, seal
from wsss.runtime.io.image_io import decode_image
from wsss.runtime.serving.local_server import LocalServer

pytestmark = pytest.mark.triton
grpcclient = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")
httpclient = pytest.importorskip("tritonclient.http", reason="needs tritonclient")

SIZES = ((48, 64), (37, 53), (97, 130))


class InProcess:
    """The graphs of a repository in onnxruntime, with the threads of the server's sessions."""

    def __init__(self, repository: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.sessions = {
            path.parts[-3]: onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
            for path in repository.glob("*/1/model.onnx")
        }

    def run(self, model: str, inputs: Arrays) -> Arrays:
        session = self.sessions[model]
        names = [output.name for output in session.get_outputs()]
        feeds = {each.name: inputs[each.name] for each in session.get_inputs()}
        return dict(zip(names, session.run(names, feeds), strict=True))

    def ensemble(self, image: np.ndarray, present: np.ndarray | None = None) -> Arrays:
        if present is None:
            present = np.full((len(image), 3), -1, np.float32)
        known: Arrays = {"image": image, "present": present}
        known |= self.run("cam", known) | self.run("affinity", known)
        return self.run("refine", known)


@pytest.fixture(scope="module")
def in_process(repository: Path) -> InProcess:
    return InProcess(repository)


def assert_equal(found: Arrays, expected: Arrays) -> None:
    for name, values in found.items():
        assert values.dtype == expected[name].dtype
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_labels_equal_those_in_process_bit_for_bit(
    server: LocalServer, in_process: InProcess, protocol: str
) -> None:
    client = client_of(server, protocol)
    for size, count in itertools.product(SIZES, (1, 3)):
        image, present = images(count, size), classes(count)
        whole: Arrays = {"image": image, "present": present}
        for model in ("label", "segmenter", "label_ensemble"):
            outputs = LABEL_OUTPUTS[:3] if model == "segmenter" else LABEL_OUTPUTS
            inputs = {"image": image} if model == "segmenter" else whole
            found = ask(client, model, inputs, outputs)
            expected = (
                in_process.ensemble(image, present)
                if model == "label_ensemble"
                else in_process.run(model, whole)
            )
            assert found["label"].shape == (count, *size)
            assert_equal(found, expected)
    assert len(np.unique(found["label"])) > 1  # a map of one value would prove little


def test_classes_may_be_left_out_of_the_ensemble(
    server: LocalServer, in_process: InProcess
) -> None:
    client = client_of(server, "grpc")
    for count in (1, 3):
        image = images(count, (37, 53))
        found = ask(client, "label_ensemble", {"image": image}, LABEL_OUTPUTS)
        assert_equal(found, in_process.ensemble(image))
        told = np.eye(3, dtype=np.float32)[:count]
        inputs = {"image": image, "present": told}
        used = ask(client, "label_ensemble", inputs, ["used_classes"])["used_classes"]
        np.testing.assert_array_equal(used, told)
        # The graph itself takes batches, so its input is required: see `graph_config`.
        with pytest.raises(Exception, match=r"expected 2 inputs but got 1"):
            ask(client, "label", {"image": image}, ["label"])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_every_subset_of_the_outputs_can_be_asked_for(
    server: LocalServer, in_process: InProcess, protocol: str
) -> None:
    client, image = client_of(server, protocol), images(1, (37, 53))
    expected = in_process.ensemble(image)
    for count in range(1, len(LABEL_OUTPUTS) + 1):
        for subset in itertools.combinations(LABEL_OUTPUTS, count):
            assert_equal(ask(client, "label_ensemble", {"image": image}, subset), expected)


def encoded(*files: bytes) -> Arrays:
    return {"encoded": np.array(files, object).reshape(len(files), 1)}


def file_of(image: np.ndarray, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def test_files_are_decoded_as_the_library_decodes_them(
    server: LocalServer, in_process: InProcess
) -> None:
    client, image = client_of(server, "http"), images(1, (37, 53))[0]
    turned = Image.Exif()
    turned[0x0112] = 6  # a viewer turns it by a quarter
    deep = cv2.imencode(".png", image.astype(np.uint16) * 257)[1].tobytes()
    files = {
        "png": file_of(image, "PNG"),
        "jpeg": file_of(image, "JPEG", quality=90),
        "progressive": file_of(image, "JPEG", progressive=True),
        "turned": file_of(image, "JPEG", exif=turned),
        "grey": file_of(image[:, :, 0], "PNG"),
        "16 bits": deep,
    }
    for name, data in files.items():
        pixels = decode_image(data, name)
        decoded = ask(client, "decode", encoded(data), ["image"])["image"][0]
        assert decoded.shape == ((53, 37, 3) if name == "turned" else (37, 53, 3))
        # Two versions of OpenCV, here and in the server: libjpeg may round a colour otherwise.
        assert np.abs(decoded.astype(int) - pixels.astype(int)).max() <= 1, name
        found = ask(client, "label_encoded", encoded(data), LABEL_OUTPUTS)
        assert_equal(found, in_process.ensemble(decoded[None]))
    told = np.array([[0, 1, 0]], np.float32)
    found = ask(client, "label_encoded", encoded(files["png"]) | {"present": told}, ["label"])
    assert_equal(found, in_process.ensemble(image[None], told))


def png_header(height: int, width: int) -> bytes:
    """A PNG that claims a size and has hardly any data."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + kind + data)
        parts.append(struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "neither JPEG nor PNG"),
        (b"<html></html>", "neither JPEG nor PNG"),
        (b"\xff\xd8\xff", "cut off in its header"),
        (b"\xff\xd8\xff\xe0\x00\x04ab\x00", "no JPEG marker"),
        (b"\x89PNG\r\n\x1a\n", "cut off in its header"),
        (png_header(30_000, 30_000), "30000 x 30000, expected 1 to 4194304 pixels"),
        (png_header(0, 7), "0 x 7, expected 1 to"),
        (png_header(20, 30), "damaged"),
        (file_of(images(1, (37, 53))[0], "JPEG")[:-300], "cut off"),
        (file_of(images(1, (37, 53))[0], "PNG")[:-300], "cut off"),
    ],
)
def test_bad_files_fail_alone(server: LocalServer, data: bytes, message: str) -> None:
    client = client_of(server, "grpc")
    with pytest.raises(Exception, match=message):
        ask(client, "label_encoded", encoded(data), ["label"])
    good = encoded(file_of(images(1, (20, 30))[0], "PNG"))
    assert ask(client, "label_encoded", good, ["label"])["label"].shape == (1, 20, 30)


def test_the_server_runs_our_configurations(server: LocalServer, repository: Path) -> None:
    client = client_of(server, "grpc")
    names = sorted(path.name for path in repository.iterdir() if path.is_dir())
    index = client.get_model_repository_index().models
    assert sorted((m.name, m.version, m.state) for m in index) == [
        (name, "1", "READY") for name in names
    ]
    for name in names:
        own = read_config(repository / name / CONFIG)
        used = client.get_model_config(name).config
        # What the server fills in by itself.
        if own.backend == "onnxruntime":
            own.platform, own.default_model_filename = "onnxruntime_onnx", "model.onnx"
        if own.backend == "python":
            own.default_model_filename = "model.py"
        for index_, group in enumerate(own.instance_group):
            group.name = f"{name}_{index_}"
        if own.HasField("dynamic_batching") and not own.dynamic_batching.preferred_batch_size:
            own.dynamic_batching.preferred_batch_size.append(own.max_batch_size)
        for fields in (used, own):
            fields.ClearField("optimization")  # pinned memory, which is the default
            fields.ClearField("runtime")
            fields.ClearField("model_transaction_policy")
        assert config_text(used) == config_text(own)


def test_requests_that_come_together_run_together(
    server: LocalServer, in_process: InProcess
) -> None:
    client, image = client_of(server, "grpc"), images(1, (97, 130))
    expected = in_process.run("label", {"image": image, "present": classes(1)})["label"]

    def counts() -> tuple[int, int]:
        stats = client.get_inference_statistics("label").model_stats[0]
        return stats.inference_count, stats.execution_count

    arrays: Arrays = {"image": image, "present": classes(1)}
    before, errors = counts(), list[BaseException]()

    def work() -> None:
        try:
            for _ in range(4):
                label = ask(client, "label", arrays, ["label"])["label"]
                assert (label == expected).mean() > 0.999  # sums of a batch may round otherwise
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    end = time.monotonic() + 10
    while counts()[0] < before[0] + 32 and time.monotonic() < end:
        time.sleep(0.05)  # the server counts a request after it has answered it
    inferences, executions = (after - b for after, b in zip(counts(), before, strict=True))
    assert inferences == 32 and executions < inferences


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RepositoryOptions(max_queue_size=1, max_batch_size=1), "Exceeds maximum queue size"),
        (RepositoryOptions(default_timeout=20_000, max_batch_size=1), "Request timeout expired"),
    ],
)
def test_an_overloaded_ensemble_refuses_and_goes_on(
    triton_environment: object,
    bundle: Path,
    in_process: InProcess,
    options: RepositoryOptions,
    message: str,
    tmp_path: Path,
) -> None:
    """Where steps ran side by side, two full queues at once ended the whole server."""
    folder, image = tmp_path / "models", images(1, (37, 53))
    write_repository(bundle, folder, replace(options, intra_op_threads=1))
    explicit = ["--model-control-mode=explicit", "--load-model=label_ensemble"]
    with triton_server(folder, options=explicit) as server:
        client, expected = client_of(server, "grpc"), in_process.ensemble(image)

        def one(_: int) -> str:
            try:
                found = ask(client, "label_ensemble", {"image": image}, ["label"])
            except grpcclient.InferenceServerException as error:
                assert message in str(error) and "UNAVAILABLE" in str(error.status()), error
                return "refused"
            assert_equal(found, expected)
            return "answered"

        with ThreadPoolExecutor(32) as pool:
            outcomes = Counter(pool.map(one, range(400)))
        assert outcomes["refused"] and outcomes["answered"]
        # A busy machine may keep even a request alone waiting for longer than it allows.
        assert any(one(number) == "answered" for number in range(50))


def test_warm_up_runs_before_a_model_is_ready(
    triton_environment: object, repository: Path, tmp_path: Path
) -> None:
    """The server counts its own sample, and asks for nothing else before it says it is ready."""
    folder = tmp_path / "models"
    for name in ("segmenter", "refine", "relay"):
        shutil.copytree(repository / name, folder / name)
    with triton_server(folder) as server:
        client = client_of(server, "grpc")
        counts = {
            model.name: model.inference_count
            for model in client.get_inference_statistics().model_stats
        }
        assert counts == {"segmenter": 1, "refine": 1, "relay": 0}  # which has no sample


def test_a_new_version_comes_without_a_failed_request(
    triton_environment: object, bundle: Path, tmp_path: Path
) -> None:
    second = shutil.copytree(bundle, tmp_path / "second")
    manifest = json.loads((second / MANIFEST).read_text())
    del manifest["digest"]
    (second / MANIFEST).write_bytes(seal(manifest | {"name": "second"}))
    folder = tmp_path / "models"
    options = RepositoryOptions(intra_op_threads=1)
    first_digest = write_repository(bundle, folder, options).digest
    models = ("label_ensemble", "label")
    explicit = ["--model-control-mode=explicit", *(f"--load-model={name}" for name in models)]
    with triton_server(folder, options=explicit) as server:
        client, image = client_of(server, "grpc"), images(1, (37, 53))
        arrays: Arrays = {"image": image, "present": classes(1)}
        versions: dict[str, list[str]] = {name: [] for name in models}
        errors, done = list[BaseException](), threading.Event()

        def keep_asking(name: str) -> None:
            own = client_of(server, "grpc")
            inputs = given(own, arrays)
            while not done.is_set():
                try:
                    versions[name].append(own.infer(name, inputs).get_response().model_version)
                except BaseException as error:
                    errors.append(error)

        threads = [threading.Thread(target=keep_asking, args=(name,)) for name in models]
        for thread in threads:
            thread.start()
        try:
            added = write_repository(second, folder, options, version=2)
            for name in models:  # an ensemble loads its steps
                client.load_model(name)
            time.sleep(0.5)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert not errors
        for name in models:
            assert versions[name][0] == "1" and versions[name][-1] == "2"
            assert versions[name] == sorted(versions[name])  # never back
            parameters = client.get_model_config(name).config.parameters
            assert parameters["wsss.digest"].string_value == added.digest != first_digest
            digests = json.loads(parameters["wsss.digests"].string_value)
            assert digests == {"1": first_digest, "2": added.digest}
