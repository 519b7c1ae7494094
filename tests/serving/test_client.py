"""The triton backend against a real server: the same numbers, and one clear line for each fault."""

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from wsss.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    DeadlineError,
    ServerError,
    ShapeError,
)
from wsss.runtime.serving.local_server import LocalServer

pytest.importorskip("tritonclient.http", reason="needs tritonclient: pip install 'wsss[triton]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

from triton_server import num_waiting, triton_server

from wsss.export.triton import RepositoryOptions, write_repository
from wsss.runtime.backends.contract import closed
from wsss.runtime.backends.onnxruntime_backend import OnnxruntimeGraph, open_onnx
from wsss.runtime.backends.triton import backend as triton_backend
from wsss.runtime.backends.triton.backend import TritonGraph, open_triton

pytestmark = pytest.mark.triton
SIZES = ((64, 64), (97, 130), (33, 200), (1, 1))


def url_of(server: LocalServer, protocol: str) -> str:
    return f"{protocol}://{server.http if protocol == 'http' else server.grpc}"


def inputs_of(batch: int, size: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Noise, the first image with given classes and the others without."""
    present = np.full((batch, 3), -1, np.float32)
    present[0] = (1, 0, 1)
    image = np.random.default_rng(seed).integers(0, 256, (batch, *size, 3), dtype=np.uint8)
    return {"image": image, "present": present}


@pytest.fixture(scope="module")
def local(bundle: Path) -> OnnxruntimeGraph:
    """`label` in this process, with as many threads as on the server."""
    return open_onnx(bundle / "label.onnx", threads=1)


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, server: LocalServer) -> str:
    return url_of(server, request.param)


@pytest.fixture
def graph(url: str) -> Iterator[TritonGraph]:
    opened = open_triton(url, "label")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def narrow(
    triton_environment: object, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    """A server whose queues hold one request."""
    folder = tmp_path_factory.mktemp("narrow") / "models"
    options = RepositoryOptions(intra_op_threads=1, max_queue_size=1, max_batch_size=1)
    write_repository(bundle, folder, options)
    with triton_server(folder) as running:
        yield running


def test_same_bits_as_in_process(url: str, local: OnnxruntimeGraph) -> None:
    graph = open_triton(url, "label")
    for size in SIZES:
        for batch in (1, 2, 5):
            inputs = inputs_of(batch, size)
            expected = local.run(inputs)
            found = graph.run(inputs)
            assert found.keys() == expected.keys()
            for name, array in expected.items():
                assert found[name].dtype == array.dtype
                np.testing.assert_array_equal(found[name], array)
    graph.close()


def test_subsets_of_outputs(graph: TritonGraph, local: OnnxruntimeGraph) -> None:
    inputs = inputs_of(2, (64, 64))
    expected = local.run(inputs)
    for names in (["label"], ["scores", "label"], ["confidence"], []):
        for _ in range(2):
            found = graph.run(inputs, names)
            assert list(found) == names
            for name in names:
                np.testing.assert_array_equal(found[name], expected[name])


def test_description(graph: TritonGraph) -> None:
    described = graph.describe()
    assert (described.backend, described.device) == ("onnxruntime", "cpu")
    shapes = {spec.name: spec.shape for spec in (*described.inputs, *described.outputs)}
    assert shapes["image"] == ("batch", "image_1", "image_2", 3)
    assert shapes["present"] == ("batch", 3)
    assert shapes["label"] == ("batch", "label_1", "label_2")


def test_many_threads_at_once(graph: TritonGraph, local: OnnxruntimeGraph) -> None:
    """Each gets its own answers, of sizes that grow and shrink."""
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for step in range(6):
                inputs = inputs_of(1, (40 + 8 * ((number + step) % 4), 48), seed=number)
                found = graph.run(inputs, ["label", "scores"])
                expected = local.run(inputs, ["label", "scores"])
                # In a batch that the server made onnxruntime sums in another order: 2e-6.
                near = np.allclose(found["scores"], expected["scores"], rtol=0, atol=1e-5)
                if not near or (found["label"] != expected["label"]).any():
                    wrong.append((number, step))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# What is refused before it is sent, and what the server refuses


def test_inputs_that_do_not_fit(graph: TritonGraph) -> None:
    good = inputs_of(1, (64, 64))
    image, present = good["image"], good["present"]
    with pytest.raises(DataError, match="`image` is float32, expected uint8"):
        graph.run({"image": image.astype(np.float32), "present": present})
    with pytest.raises(ShapeError, match=r"`image` is \(64, 64, 3\), expected"):
        graph.run({"image": image[0], "present": present})
    with pytest.raises(ShapeError, match=r"`present` is \(1, 4\), expected \(batch, 3\)"):
        graph.run({"image": image, "present": np.zeros((1, 4), np.float32)})
    with pytest.raises(ShapeError, match="with batch 1"):
        graph.run({"image": image, "present": np.zeros((2, 3), np.float32)})


def test_what_the_server_refuses(graph: TritonGraph) -> None:
    """As after a change of the model that the client has not seen: its own check lets it pass."""
    inputs = inputs_of(1, (64, 64))
    with pytest.raises(ShapeError, match="batch-size must be <= 8"):
        graph.run(inputs_of(9, (16, 16)))
    description = graph.served.description
    image, present = description.inputs

    def believe(**changes: object) -> None:
        believed = (dataclasses.replace(image, **changes), present)
        changed = dataclasses.replace(description, inputs=believed)
        datatypes = {**graph.served.datatypes, "image": "FP32" if changes.get("dtype") else "UINT8"}
        served = dataclasses.replace(graph.served, description=changed, datatypes=datatypes)
        graph.served = served

    believe(dtype="float32")
    with pytest.raises(DataError, match=r"refuses its inputs: .*'FP32', but .* expects 'UINT8'"):
        graph.run({**inputs, "image": inputs["image"].astype(np.float32)})
    believe(shape=("batch", "image_1", "image_2", 2))
    with pytest.raises(ShapeError, match="refuses its inputs: unexpected shape for input 'image'"):
        graph.run({**inputs, "image": inputs["image"][..., :2]})


def test_unknown_model_and_version(url: str) -> None:
    with pytest.raises(ConfigError, match=r"no model 'lable'; models that are ready: .*label"):
        open_triton(url, "lable")
    with pytest.raises(ConfigError, match="no model 'label' in version 7"):
        open_triton(url, "label", version="7")


def test_wrong_protocol(server: LocalServer) -> None:
    with pytest.raises(ServerError, match="no Triton server of this protocol"):
        open_triton(f"http://{server.grpc}", "label")
    with pytest.raises(ServerError, match="no Triton at grpc://"):
        open_triton(f"grpc://{server.http}", "label", retries=1)
    metrics = server.metrics.removeprefix("http://").removesuffix("/metrics")
    with pytest.raises(ServerError, match="no Triton server of this protocol"):
        open_triton(f"http://{metrics}", "label")


# Time


def test_deadline(url: str, local: OnnxruntimeGraph) -> None:
    """The late answer must not reach the next request."""
    graph = open_triton(url, "label")
    large = inputs_of(4, (320, 320))
    graph._deadline_s = 0.05
    with pytest.raises(DeadlineError, match=r"did not answer within 0\.05 s: allow more time"):
        graph.run(large)
    graph._deadline_s = 60.0
    inputs = inputs_of(2, (64, 64))
    expected = local.run(inputs)
    for _ in range(3):
        found = graph.run(inputs)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
    graph.close()


def test_full_queue(narrow: LocalServer, local: OnnxruntimeGraph) -> None:
    """Refusals are tried again until there is room; without patience they are an error."""
    outcomes: list[object] = []
    inputs = inputs_of(1, (160, 160))

    def work(graph: TritonGraph) -> None:
        try:
            outcomes.append(graph.run(inputs, ["label"])["label"])
        except Exception as error:
            outcomes.append(error)

    def flood(graph: TritonGraph) -> list[object]:
        outcomes.clear()
        threads = [threading.Thread(target=work, args=(graph,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        graph.close()
        return outcomes.copy()

    for protocol in ("http", "grpc"):
        found = flood(open_triton(url_of(narrow, protocol), "label", retries=0))
        refused = [outcome for outcome in found if isinstance(outcome, ServerError)]
        assert refused and "takes no more requests for 'label'" in str(refused[0])
        expected = local.run(inputs, ["label"])["label"]
        for outcome in flood(open_triton(url_of(narrow, protocol), "label", retries=1000)):
            np.testing.assert_array_equal(outcome, expected)


# Requests that are given up


class Asking:
    """Threads that ask so many times each, or until something is raised."""

    NUM_THREADS = 4
    BATCH = 5
    """Two requests of so many are more than the server joins."""

    def __init__(self, graph: TritonGraph, size: tuple[int, int], times: int) -> None:
        self.inputs = inputs_of(self.BATCH, size)
        self.answers: list[np.ndarray] = []
        self.errors: list[Exception] = []
        self._graph, self._times = graph, times
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.NUM_THREADS)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        try:
            for _ in range(self._times):
                self.answers.append(self._graph.run(self.inputs, ["label"])["label"])
        except Exception as error:
            self.errors.append(error)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def wait_accepted(self, server: LocalServer) -> None:
        """Until the server has a request of each thread, of which it computes one."""
        while num_waiting(server.metrics, "label") < self.NUM_THREADS - 1:
            assert not self.errors


def test_closed_under_way(url: str, server: LocalServer, local: OnnxruntimeGraph) -> None:
    """Requests under way are answered, and further ones are refused."""
    graph = open_triton(url, "label")
    asking = Asking(graph, (96, 96), times=10_000)
    expected = local.run(asking.inputs, ["label"])["label"]
    asking.wait_accepted(server)
    num_before = len(asking.answers)
    graph.close()
    asking.join()
    assert len(asking.answers) > num_before
    assert all(np.array_equal(answer, expected) for answer in asking.answers)
    # None was cut off: each was refused before it was sent.
    assert [str(error) for error in asking.errors] == [str(closed())] * 4
    assert [error.__cause__ for error in asking.errors] == [None] * 4
    with pytest.raises(RuntimeError, match="closed"):
        graph.run(inputs_of(1, (16, 16)))
    graph.close()
    fresh = open_triton(url, "label")
    assert fresh.run(inputs_of(1, (16, 16)), ["label"])["label"].shape == (1, 16, 16)
    fresh.close()


@pytest.mark.parametrize("how", ["close", "deadline"])
def test_what_becomes_of_requests_that_are_given_up(
    url: str, server: LocalServer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server serves others; what waits is dropped, but where HTTP is cut off it is computed."""
    monkeypatch.setattr(triton_backend, "_CLOSE_S", 0.0)
    fresh = open_triton(url, "label")
    graph = open_triton(url, "label")
    if how == "deadline":
        graph._deadline_s = 0.1
    before, _ = fresh.statistics()
    asking = Asking(graph, (192, 192), times=1)
    if how == "close":
        asking.wait_accepted(server)
        graph.close()
    asking.join()
    # The queue is first in, first out: after this answer the others are computed or dropped.
    assert fresh.run(inputs_of(1, (16, 16)), ["label"])["label"].shape == (1, 16, 16)
    num_computed = (fresh.statistics()[0] - before) // asking.BATCH
    if how == "close":
        assert all(str(error) == str(closed()) for error in asking.errors)
        assert any(error.__cause__ is not None for error in asking.errors)
    else:
        assert any(isinstance(error, DeadlineError) for error in asking.errors)
    if how == "close" and url.startswith("http"):
        assert num_computed == asking.NUM_THREADS
    else:
        assert num_computed < asking.NUM_THREADS
    graph.close()
    fresh.close()


# Restarts


def test_a_restarted_server(
    triton_environment: object, repository: Path, local: OnnxruntimeGraph
) -> None:
    """The same graph goes on, with the same numbers."""
    inputs = inputs_of(2, (64, 64))
    expected = local.run(inputs)
    with triton_server(repository) as server:
        graphs = [
            open_triton(url_of(server, protocol), "label", patience_s=60)
            for protocol in ("http", "grpc")
        ]
        for kill in (True, False):
            for graph in graphs:
                graph.run(inputs)
            if kill:
                server.kill()
                server.start()
            else:
                server.stop()
                server.start()
            for graph in graphs:
                for name, array in graph.run(inputs).items():
                    np.testing.assert_array_equal(array, expected[name])
        server.stop()
        for graph in graphs:
            graph._retrier.policy = dataclasses.replace(graph._retrier.policy, total_s=0.2)
            with pytest.raises(ServerError, match=r"no Triton at .* start it by `wsss serve`"):
                graph.run(inputs)
            graph.close()


@pytest.mark.slow
def test_another_model_after_a_restart(
    triton_environment: object, bundle: Path, tmp_path: Path
) -> None:
    """Answers of two bundles must not stand side by side."""
    folder = tmp_path / "models"
    write_repository(bundle, folder, RepositoryOptions(intra_op_threads=1))
    with triton_server(folder) as server:
        graph = open_triton(url_of(server, "grpc"), "segmenter")
        image = inputs_of(1, (32, 32))["image"]
        graph.run({"image": image})
        config = folder / "segmenter" / "config.pbtxt"
        digest = next(iter(graph.served.digests().values()))
        server.stop()
        config.write_text(config.read_text().replace(digest, "0" * 64))
        server.start()
        with pytest.raises(ArtifactError, match="has another model as 'segmenter' now"):
            graph.run({"image": image})
        graph.close()
