"""A server under load for minutes: nothing lost, nothing changed, no growing memory."""

import os
import re
import shutil
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

import tritonclient.grpc as grpcclient
from triton_server import triton_server

from wsss.export.triton import RepositoryOptions, write_repository
from wsss.runtime.serving.local_server import LocalServer

pytestmark = [pytest.mark.triton, pytest.mark.slow]
IN_FLIGHT = 64
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 24, 32, 3), dtype=np.uint8)
LEAK = '''"""Keeps 100 kB of every request, so that the check of memory has something to find."""
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    kept = []

    def execute(self, requests):
        self.kept.extend(b"x" * 100_000 for _ in requests)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", np.zeros(1, np.float32))])
            for _ in requests
        ]
'''
LEAK_CONFIG = """name: "leak" backend: "python"
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]
"""


def tensor(name: str, values: np.ndarray, kind: str) -> object:
    given = grpcclient.InferInput(name, list(values.shape), kind)
    given.set_data_from_numpy(values)
    return given


def resident_bytes(server: LocalServer) -> int:
    """Of the server and its stubs, which are one process group."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == server.pid:
                status = (folder / "status").read_text()
                total += 1024 * int(re.findall(r"VmRSS:\s+(\d+)", status)[0])
        except (OSError, IndexError):  # ended meanwhile
            continue
    return total


def has_grown(middle: int, end: int) -> bool:
    return end > middle + max(0.02 * middle, 8 * 2**20)


def metric(server: LocalServer, name: str, model: str) -> int:
    with urllib.request.urlopen(server.metrics, timeout=5) as answer:
        text = answer.read().decode()
    found = re.findall(rf'^{name}{{[^}}]*model="{model}"[^}}]*}} ([0-9.e+]+)$', text, re.M)
    return int(sum(float(value) for value in found))


def in_halves(server: LocalServer, one: Callable[[int], str], count: int) -> tuple[Counter, bool]:
    """Outcomes of `count` requests, and whether memory grew in the second half of them."""
    outcomes: Counter[str] = Counter()
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        outcomes.update(pool.map(one, range(count // 2)))
        middle = resident_bytes(server)
        outcomes.update(pool.map(one, range(count // 2, count)))
    return outcomes, has_grown(middle, resident_bytes(server))


def test_ten_thousand_requests_with_bad_ones_among_them(
    triton_environment: object, repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(repository / "segmenter", tmp_path / "segmenter")
    leak = tmp_path / "leak" / "1" / "model.py"
    leak.parent.mkdir(parents=True)
    leak.write_text(LEAK)
    (tmp_path / "leak" / "config.pbtxt").write_text(LEAK_CONFIG)
    wanted = [grpcclient.InferRequestedOutput("label")]
    good = tensor("image", IMAGE, "UINT8")
    bad = (
        ("segmenter", [tensor("image", IMAGE.astype(np.float32), "FP32")]),
        ("segmenter", [tensor("image", IMAGE[..., :2].copy(), "UINT8")]),
        ("segmenter", [tensor("picture", IMAGE, "UINT8")]),
        ("segmenter", [tensor("image", np.repeat(IMAGE, 50, 0), "UINT8")]),
        ("segmentor", [good]),
    )
    with triton_server(tmp_path) as server:
        client = grpcclient.InferenceServerClient(server.grpc)
        expected = client.infer("segmenter", [good], outputs=wanted).as_numpy("label")

        def one(number: int) -> str:
            model, inputs = ("segmenter", [good])
            is_bad = number % 20 == 7
            if is_bad:
                model, inputs = bad[number // 20 % len(bad)]
            try:
                label = client.infer(model, inputs, outputs=wanted).as_numpy("label")
            except grpcclient.InferenceServerException as error:
                refused = str(error.status()) in (
                    "StatusCode.INVALID_ARGUMENT",
                    "StatusCode.NOT_FOUND",
                )
                return "refused" if is_bad and refused else f"failed: {error}"
            return "good" if np.array_equal(label, expected) else "changed"

        for _ in range(2):
            in_halves(server, one, 400)  # memory that is taken once
        before = metric(server, "nv_inference_request_success", "segmenter")
        outcomes, grew = in_halves(server, one, 10_000)
        assert outcomes == {"good": 9_500, "refused": 500}
        end = time.monotonic() + 10
        while True:
            counted = metric(server, "nv_inference_request_success", "segmenter") - before
            if counted >= 9_500 or time.monotonic() > end:
                break
            time.sleep(0.1)
        assert counted == 9_500
        assert not grew

        value = tensor("x", np.zeros(1, np.float32), "FP32")

        def leaking(_: int) -> str:
            client.infer("leak", [value])
            return "good"

        outcomes, grew = in_halves(server, leaking, 1_000)
        assert outcomes == {"good": 1_000} and grew  # the check finds 50 MB


def test_reloads_and_bad_versions_and_the_end_under_load(
    triton_environment: object, bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    options = RepositoryOptions(intra_op_threads=1)
    write_repository(bundle, folder, options)
    explicit = ["--model-control-mode=explicit", "--load-model=segmenter"]
    with triton_server(folder, options=explicit) as server:
        client = grpcclient.InferenceServerClient(server.grpc)
        inputs = [tensor("image", IMAGE, "UINT8")]
        expected = client.infer("segmenter", inputs).as_numpy("label")
        draining, failures, answers = threading.Event(), list[str](), Counter[str]()

        def keep_asking() -> None:
            own = grpcclient.InferenceServerClient(server.grpc)
            while True:
                try:
                    label = own.infer("segmenter", inputs).as_numpy("label")
                except grpcclient.InferenceServerException as error:
                    if not draining.is_set():
                        failures.append(str(error))
                    return
                answers["equal" if np.array_equal(label, expected) else "other"] += 1

        threads = [threading.Thread(target=keep_asking) for _ in range(8)]
        for thread in threads:
            thread.start()
        started = time.monotonic()
        for version in range(2, 12):
            write_repository(bundle, folder, options, version=version)
            client.load_model("segmenter")
            if version % 3 == 0:
                broken = folder / "segmenter" / str(1000 + version)
                broken.mkdir()
                (broken / "model.onnx").write_bytes(b"no graph")
                with pytest.raises(grpcclient.InferenceServerException):
                    client.load_model("segmenter")
                shutil.rmtree(broken)
        time.sleep(max(0.0, 20 - (time.monotonic() - started)))
        assert not failures, failures[:3]
        draining.set()
        assert server.stop() == 0
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert not failures
    assert answers["equal"] > 100 and answers["other"] == 0
