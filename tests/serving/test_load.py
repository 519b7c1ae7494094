"""A server under load for minutes: nothing lost, nothing changed, no growing memory."""

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

import tritonclient.grpc as grpcclient
from triton_requests import Arrays, ask, client_of, given, images, metric, resident_bytes
from triton_server import triton_server

from wsss.export.triton import RepositoryOptions, write_repository
from wsss.runtime.serving.local_server import LocalServer

pytestmark = [pytest.mark.triton, pytest.mark.slow]
IN_FLIGHT = 64
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 24, 32, 3), dtype=np.uint8)
GOOD: Arrays = {"image": IMAGE}
INVALID: tuple[tuple[str, Arrays], ...] = (
    ("segmenter", {"image": IMAGE.astype(np.float32)}),
    ("segmenter", {"image": IMAGE[..., :2].copy()}),
    ("segmenter", {"picture": IMAGE}),
    ("segmenter", {"image": np.repeat(IMAGE, 50, 0)}),
    ("segmentor", GOOD),
)
"""Refused before they reach a model: the server counts them nowhere."""
EXPIRED = len(INVALID)
"""The kind of bad request that waits longer than it allows: the server counts it as REJECTED."""
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
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


def has_grown(middle: int, end: int) -> bool:
    return end > middle + max(0.02 * middle, 8 * 2**20)


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
    with triton_server(tmp_path) as server:
        client = client_of(server, "grpc")
        expected = ask(client, "segmenter", GOOD, ["label"])["label"]

        def one(number: int) -> str:
            is_bad, kind = number % 20 == 7, number // 20 % (len(INVALID) + 1)
            model, inputs = INVALID[kind] if is_bad and kind != EXPIRED else ("segmenter", GOOD)
            microseconds = {"timeout": 1} if is_bad and kind == EXPIRED else {}
            try:
                label = ask(client, model, inputs, ["label"], **microseconds)["label"]
            except grpcclient.InferenceServerException as error:
                if is_bad and kind == EXPIRED and "Request timeout expired" in str(error):
                    return "expired"
                refused = str(error.status()).split(".")[-1] in ("INVALID_ARGUMENT", "NOT_FOUND")
                return "refused" if is_bad and kind != EXPIRED and refused else f"failed: {error}"
            if is_bad and kind != EXPIRED:
                return "answered, though bad"
            return "good" if np.array_equal(label, expected) else "changed"

        def counted() -> dict[str, int]:
            failures = {
                reason: metric(server, "nv_inference_request_failure", "segmenter", reason=reason)
                for reason in REASONS
            }
            return failures | {"good": metric(server, "nv_inference_request_success", "segmenter")}

        for _ in range(2):
            in_halves(server, one, 400)  # memory that is taken once
        before = counted_when_still(counted)
        outcomes, grew = in_halves(server, one, 10_000)
        # 500 bad ones of six kinds in turn; one may come just when nobody waits, and is answered.
        assert outcomes["refused"] == 84 + 84 + 83 + 83 + 83
        assert outcomes["good"] + outcomes["expired"] == 9_500 + 83
        assert 0 < outcomes["expired"] <= 83 and sum(outcomes.values()) == 10_000
        now = counted_when_still(counted)
        found = {name: now[name] - before[name] for name in now}
        assert found == {
            **dict.fromkeys(REASONS, 0),
            "REJECTED": outcomes["expired"],
            "good": outcomes["good"],
        }
        assert not grew

        def leaking(_: int) -> str:
            ask(client, "leak", {"x": np.zeros(1, np.float32)}, ["y"])
            return "good"

        outcomes, grew = in_halves(server, leaking, 1_000)
        assert outcomes == {"good": 1_000} and grew  # the check finds 50 MB


def counted_when_still(counted: Callable[[], dict[str, int]]) -> dict[str, int]:
    """Figures that the server writes a moment after its answers."""
    end, found = time.monotonic() + 20, counted()
    while time.monotonic() < end:
        time.sleep(0.5)
        before, found = found, counted()
        if before == found:
            break
    return found


def test_reloads_and_bad_versions_and_the_end_under_load(
    triton_environment: object, bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    """Versions of two bundles in turn: each answer is that of the version it names."""
    folder = tmp_path / "models"
    options = RepositoryOptions(intra_op_threads=1)
    write_repository(bundle, folder, options)
    inputs: Arrays = {"image": images(1, (24, 32))}
    bundles = (other_bundle, bundle)  # of even and odd versions
    expected = [
        label_alone(each, inputs, tmp_path / str(number)) for number, each in enumerate(bundles)
    ]
    assert not np.array_equal(*expected)
    explicit = ["--model-control-mode=explicit", "--load-model=segmenter"]
    with triton_server(folder, options=explicit) as server:
        client = client_of(server, "grpc")
        draining, failures = threading.Event(), list[str]()
        answers: Counter[tuple[int, bool]] = Counter()

        def keep_asking() -> None:
            own = client_of(server, "grpc")
            tensors = given(own, inputs)
            while True:
                try:
                    result = own.infer("segmenter", tensors)
                except grpcclient.InferenceServerException as error:
                    if not draining.is_set():
                        failures.append(str(error))
                    return
                version = int(result.get_response().model_version)
                is_its_own = np.array_equal(result.as_numpy("label"), expected[version % 2])
                answers[version, is_its_own] += 1

        threads = [threading.Thread(target=keep_asking) for _ in range(8)]
        for thread in threads:
            thread.start()
        started = time.monotonic()
        for version in range(2, 12):
            write_repository(bundles[version % 2], folder, version=version)
            client.load_model("segmenter")
            if version % 3 == 0:
                broken = folder / "segmenter" / str(1000 + version)
                broken.mkdir()
                (broken / "model.onnx").write_bytes(b"no graph")
                with pytest.raises(grpcclient.InferenceServerException):
                    client.load_model("segmenter")
                shutil.rmtree(broken)
        time.sleep(max(0.0, 20 - (time.monotonic() - started)))
        end = time.monotonic() + 30  # the last version has just been loaded where that took long
        while not any(version == 11 for version, _ in tuple(answers)) and time.monotonic() < end:
            time.sleep(0.1)
        assert not failures, failures[:3]
        draining.set()
        assert server.stop() == 0
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert not failures
    assert sum(answers.values()) > 100
    assert all(is_its_own for _, is_its_own in answers)
    assert {1, 11} <= {version for version, _ in answers}


def label_alone(bundle: Path, inputs: Arrays, folder: Path) -> np.ndarray:
    """What `segmenter` of a bundle answers, from a server that has no other version."""
    write_repository(bundle, folder, RepositoryOptions(intra_op_threads=1))
    explicit = ["--model-control-mode=explicit", "--load-model=segmenter"]
    with triton_server(folder, options=explicit) as server:
        return ask(client_of(server, "grpc"), "segmenter", inputs, ["label"])["label"]
