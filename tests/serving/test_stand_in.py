"""What our stand-in for the ONNX Runtime backend refuses, as the real one does."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from triton_server import find_server, triton_server

from wsss.errors import ServerError
from wsss.export.triton.messages import CONFIG, config_text, model_config_pb2, read_config
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
        source = "default_present" if fault is optional_in_batches else "label"
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
    shutil.copytree(repository / "default_present", tmp_path / "default_present")
    with triton_server(tmp_path) as server:
        regions = list(Path("/dev/shm").glob(f"{server.shared_memory}*"))
        address, first = server.http, server.pid
        assert regions and server.is_ready()
        assert server.kill() == -signal.SIGKILL
        assert not server.is_live()
        assert not any(region.exists() for region in regions)
        server.start()
        assert server.is_ready() and server.http == address and server.pid != first
        assert server.stop() == 0
    assert not list(Path("/dev/shm").glob(f"{server.shared_memory}*"))
