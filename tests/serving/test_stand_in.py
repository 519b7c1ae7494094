"""What our stand-in for the ONNX Runtime backend refuses, as the real one does."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from triton_requests import Arrays, ask, classes, client_of, images, resident_bytes
from triton_server import find_server, is_live, triton_server

from wsss.errors import ServerError
from wsss.export.triton.configs import CONFIG, config_text, model_config_pb2, read_config
from wsss.runtime.serving.local_server import LocalServer

pytestmark = pytest.mark.triton


def wrong_type(config: Any) -> None:
    config.input[0].data_type = model_config_pb2().TYPE_INT32


def optional_in_batches(config: Any) -> None:
    config.max_batch_size = 4
    for tensor in (*config.input, *config.output):
        del tensor.dims[0]


def missing_input(config: Any) -> None:
    del config.input[1]


def unknown_output(config: Any) -> None:
    config.output[0].name = "mask"


def wrong_dims(config: Any) -> None:
    config.output[1].dims[0] = 7


def on_a_gpu(config: Any) -> None:
    del config.instance_group[:]
    config.instance_group.add(kind=model_config_pb2().ModelInstanceGroup.KIND_MODEL)


FAULTS: dict[Callable[[Any], None], str] = {
    wrong_type: "expects datatype TYPE_INT32 for input 'image', model provides TYPE_UINT8",
    optional_in_batches: "optional input 'present' is not supported for models that support batch",
    missing_input: "configuration expects 1 inputs, model provides 2",
    unknown_output: "unexpected inference output 'mask'",
    wrong_dims: "tensor 'confidence': the model expects shape",
    on_a_gpu: "no instances of kind MODEL here",
}


def test_faults_are_refused_while_good_models_serve(
    triton_environment: object, repository: Path, tmp_path: Path
) -> None:
    grpcclient = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")
    folder = tmp_path / "models"
    shutil.copytree(repository / "label", folder / "label")
    for fault in FAULTS:
        source = "relay" if fault is optional_in_batches else "label"
        shutil.copytree(repository / source, folder / fault.__name__)
        config = read_config(folder / fault.__name__ / CONFIG)
        config.name = fault.__name__
        del config.model_warmup[:]
        fault(config)
        (folder / fault.__name__ / CONFIG).write_text(config_text(config))
    options = ["--exit-on-error=false", "--strict-readiness=false"]
    with triton_server(folder, options=options) as server:
        client = grpcclient.InferenceServerClient(server.grpc)
        assert client.is_model_ready("label")
        index = {model.name: model.reason for model in client.get_model_repository_index().models}
        for fault, message in FAULTS.items():
            assert message in index[fault.__name__]
            assert not client.is_model_ready(fault.__name__)


@pytest.mark.slow
def test_memory_is_given_back_where_the_configuration_says_so(
    triton_environment: object, repository: Path, tmp_path: Path
) -> None:
    """By the names of the real backend; labels do not depend on it."""
    resident, labels = {}, {}
    inputs: Arrays = {"image": images(1, (1000, 1000)), "present": classes(1)}
    ways = {
        "kept": {},
        "shrunk": {"memory.enable_memory_arena_shrinkage": "cpu:0"},
        "no arena": {"enable_mem_arena": "0", "enable_mem_pattern": "0"},
    }
    for number, (way, parameters) in enumerate(ways.items()):
        folder = tmp_path / str(number)
        shutil.copytree(repository / "label", folder / "label")
        config = read_config(folder / "label" / CONFIG)
        for key, value in parameters.items():
            config.parameters[key].string_value = value
        (folder / "label" / CONFIG).write_text(config_text(config))
        with triton_server(folder) as server:
            found = ask(client_of(server, "grpc"), "label", inputs, ["label", "scores"])
            labels[way], resident[way] = found, resident_bytes(server)
    for way in ("shrunk", "no arena"):
        assert resident[way] < resident["kept"] - 128 * 2**20, resident
        for name, values in labels[way].items():
            np.testing.assert_array_equal(values, labels["kept"][name])


def test_a_server_that_cannot_start_shows_its_log(
    triton_environment: object, repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(repository / "cam", tmp_path / "models" / "cam")
    (tmp_path / "models" / "cam" / "1" / "model.onnx").write_bytes(b"no graph")
    server = LocalServer(find_server(), tmp_path / "models")
    try:
        with pytest.raises(ServerError, match=r"(?s)ended with 1:.*Protobuf parsing failed"):
            server.start()
    finally:
        server.close()
    assert not list(Path("/dev/shm").glob(f"{server.shared_memory}*"))


def test_a_killed_server_starts_again_on_its_ports_and_leaves_nothing(
    triton_environment: object, repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(repository / "relay", tmp_path / "relay")
    with triton_server(tmp_path) as server:
        regions = list(Path("/dev/shm").glob(f"{server.shared_memory}*"))
        address, first = server.http, server.pid
        assert regions and server.is_ready()
        assert server.kill() == -signal.SIGKILL
        assert not is_live(server)
        assert not any(region.exists() for region in regions)
        server.start()
        assert server.is_ready() and server.http == address and server.pid != first
        assert server.stop() == 0
    assert not list(Path("/dev/shm").glob(f"{server.shared_memory}*"))
