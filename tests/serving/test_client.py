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

from triton_server import triton_server

from wsss.export.triton import RepositoryOptions, write_repository
from wsss.runtime.backends.onnxruntime_backend import OnnxruntimeGraph, open_onnx
from wsss.runtime.backends.triton_backend import TritonGraph, open_triton
from wsss.runtime.backends.triton_memory import FOLDER, PREFIX

pytestmark = pytest.mark.triton
SIZES = ((64, 64), (97, 130), (33, 200), (1, 1))


def own_memory() -> list[str]:
    """Our files of shared memory."""
    return sorted(path.name for path in Path(FOLDER).glob(f"{PREFIX}*"))


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


@pytest.mark.parametrize("shared_memory", ["on", "off"])
def test_same_bits_as_in_process(url: str, local: OnnxruntimeGraph, shared_memory: str) -> None:
    graph = open_triton(url, "label", shared_memory=shared_memory)
    for size in SIZES:
        for batch in (1, 2, 5):
            inputs = inputs_of(batch, size)
            expected = local.run(inputs)
            # From the second time on outputs stand in shared memory as well.
            for _ in range(2):
                found = graph.run(inputs)
                assert found.keys() == expected.keys()
                for name, array in expected.items():
                    assert found[name].dtype == array.dtype
                    np.testing.assert_array_equal(found[name], array)
    assert bool(own_memory()) == (shared_memory == "on")
    graph.close()
    assert own_memory() == []


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
    assert len(own_memory()) <= 8


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
        graph.served = graph._exchange._served = served

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
    assert own_memory() == []


def test_wrong_protocol(server: LocalServer) -> None:
    with pytest.raises(ServerError, match="no Triton server of this protocol"):
        open_triton(f"http://{server.grpc}", "label")
    with pytest.raises(ServerError, match="no Triton at grpc://"):
        open_triton(f"grpc://{server.http}", "label", retries=1)
    metrics = server.metrics.removeprefix("http://").removesuffix("/metrics")
    with pytest.raises(ServerError, match="no Triton server of this protocol"):
        open_triton(f"http://{metrics}", "label")


# Time


@pytest.mark.parametrize("shared_memory", ["on", "off"])
def test_deadline(url: str, local: OnnxruntimeGraph, shared_memory: str) -> None:
    """The late answer must not reach whoever uses the memory next."""
    graph = open_triton(url, "label", shared_memory=shared_memory)
    large = inputs_of(4, (320, 320))
    graph._deadline_s = graph._exchange._deadline_s = 0.05
    with pytest.raises(DeadlineError, match=r"did not answer within 0\.05 s: allow more time"):
        graph.run(large)
    graph._deadline_s = graph._exchange._deadline_s = 60.0
    inputs = inputs_of(2, (64, 64))
    expected = local.run(inputs)
    for _ in range(3):
        found = graph.run(inputs)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
    graph.close()
    assert own_memory() == []


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
    assert own_memory() == []


# Open: on a busy machine a request that is closed under way sometimes ends in EBADF of its socket
# instead of our own error, so this one is not part of the default suite yet.
@pytest.mark.slow
def test_closed_under_way(url: str, server: LocalServer) -> None:
    """A client that gives up leaves a server that works and no memory."""
    graph = open_triton(url, "label")
    errors: list[Exception] = []

    def work() -> None:
        try:
            graph.run(inputs_of(4, (320, 320)))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not graph._exchange._pool._held.regions - set(graph._exchange._pool._free):
        assert thread.is_alive()
    graph.close()
    thread.join()
    # Over HTTP the answer may still be read, as that protocol cannot take a request back.
    assert ["closed" in str(error) for error in errors] == [True] * len(errors), errors
    assert own_memory() == []
    with pytest.raises(RuntimeError, match="closed"):
        graph.run(inputs_of(1, (16, 16)))
    fresh = open_triton(url, "label")
    assert fresh.run(inputs_of(1, (16, 16)), ["label"])["label"].shape == (1, 16, 16)
    fresh.close()


# Shared memory and restarts


def test_a_restarted_server(
    triton_environment: object, repository: Path, local: OnnxruntimeGraph
) -> None:
    """It has forgotten the memory; the same graph goes on, with the same numbers."""
    inputs = inputs_of(2, (64, 64))
    expected = local.run(inputs)
    with triton_server(repository) as server:
        graphs = [
            open_triton(url_of(server, protocol), "label", shared_memory="on", patience_s=60)
            for protocol in ("http", "grpc")
        ]
        for kill in (True, False):
            for graph in graphs:
                graph.run(inputs)
            if kill:
                server.kill()
                server.start()
            else:
                server.restart()
            for graph in graphs:
                for name, array in graph.run(inputs).items():
                    np.testing.assert_array_equal(array, expected[name])
        server.stop()
        for graph in graphs:
            graph._retrier.policy = dataclasses.replace(graph._retrier.policy, total_s=0.2)
            with pytest.raises(ServerError, match=r"no Triton at .* start it by `wsss serve`"):
                graph.run(inputs)
            graph.close()
    assert own_memory() == []


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


def test_shared_memory_that_the_server_cannot_have(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A key that the server does not find stands for a server in a container of its own."""
    from wsss.runtime.backends import triton_transport

    for protocol, part in (("http", triton_transport._Http), ("grpc", triton_transport._Grpc)):
        register = part.register

        def elsewhere(
            self: object, name: str, key: str, size: int, deadline: float, register=register
        ) -> None:
            register(self, name, f"{key}_elsewhere", size, deadline)

        monkeypatch.setattr(part, "register", elsewhere)
        url = url_of(server, protocol)
        with pytest.raises(ServerError, match=r"shared memory .* not to be had"):
            open_triton(url, "label", shared_memory="on")
        caplog.clear()
        graph = open_triton(url, "label")
        assert graph.run(inputs_of(1, (16, 16)), ["label"])["label"].shape == (1, 16, 16)
        (record,) = caplog.records
        assert "sending bytes" in record.getMessage() and "refuses" in record.getMessage()
        graph.close()
        assert own_memory() == []
