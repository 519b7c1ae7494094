"""`wsss serve` and `wsss bench serve`: real servers that start, drain and end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.http", reason="needs tritonclient: pip install 'wsss[triton]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

from command_line import wsss
from triton_server import find_server

from wsss.errors import ServerError
from wsss.runtime.backends.triton_backend import open_triton
from wsss.runtime.serving.installation import Installation, Wheel
from wsss.runtime.serving.local_server import LocalServer, free_ports

pytestmark = pytest.mark.triton
IMAGE = {"image": np.full((1, 160, 200, 3), 90, np.uint8)}
READY_SECONDS = 90


@contextmanager
def served(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """The command in a process of its own, and what it printed when the server was ready."""
    ports = free_ports()
    wheel = find_server().wheel
    assert wheel is not None
    command = [sys.executable, "-m", "wsss", "serve", *map(str, arguments), "--json"]
    command += ["--http-port", str(ports.http), "--grpc-port", str(ports.grpc)]
    command += ["--metrics-port", str(ports.metrics), "--environment", str(wheel.root)]
    command += ["--drain-seconds", "5"]  # as long a server waits for connections that stay open
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    timer = threading.Timer(READY_SECONDS, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        lines = []
        while True:
            line = process.stdout.readline()
            assert line, f"ended before it was ready: {process.communicate()[1]}"
            lines.append(line)
            if line.startswith("}"):
                break
        yield process, json.loads("".join(lines))
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def regions() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("wsss_*")}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_bundle_is_served_until_it_is_told_to_end(
    triton_environment: Installation, bundle: Path, number: int, code: int
) -> None:
    before = regions()
    with served(bundle) as (process, printed):
        assert set(printed["models"]) >= {"cam", "label", "label_ensemble", "segmenter"}
        graph = open_triton(f"grpc://{printed['grpc']}", "segmenter")
        assert graph.run(IMAGE, ["label"])["label"].shape == (1, 160, 200)
        graph.close()
        process.send_signal(number)
        assert process.wait(60) == code
    assert regions() <= before


def test_what_was_accepted_is_answered_before_the_end(
    triton_environment: Installation, repository: Path
) -> None:
    """A request is answered whole, or refused as by a server that is away; nothing in between."""
    answers: list[np.ndarray] = []
    refused: list[ServerError] = []
    with served(repository) as (process, printed):
        graph = open_triton(f"http://{printed['http']}", "segmenter", retries=0)
        expected = graph.run(IMAGE, ["label"])["label"]
        first = threading.Event()

        def ask() -> None:
            while not refused:
                try:
                    answers.append(graph.run(IMAGE, ["label"])["label"])
                    first.set()
                except ServerError as error:
                    refused.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert first.wait(30)
        process.terminate()
        for thread in threads:
            thread.join(60)
        assert process.wait(60) == 0
        graph.close()
    assert len(answers) >= 4 and len(refused) >= 1
    assert all(np.array_equal(answer, expected) for answer in answers)


def test_a_server_that_is_lost_is_told(triton_environment: Installation, repository: Path) -> None:
    with served(repository) as (process, printed):
        os.kill(int(str(printed["pid"])), signal.SIGKILL)
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert "tritonserver ended by itself" in process.stderr.read()


def test_a_repository_without_a_graph_is_refused_before_a_server_starts(
    triton_environment: Installation, repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(repository, tmp_path / "models")
    (tmp_path / "models" / "cam" / "1" / "model.onnx").unlink()
    message = wsss("serve", tmp_path / "models").line()
    assert "model 'cam' lacks '1/model.onnx'" in message
    assert "is no folder" in wsss("serve", tmp_path / "nothing").line()


def test_without_a_server_the_container_is_named(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("WSSS_TRITON_ENV", raising=False)
    outcome = wsss("serve", repository)
    assert outcome.code == 1 and "no tritonserver on PATH" in outcome.err
    assert outcome.out.startswith("docker run ") and f"-v {repository}:/models:ro" in outcome.out
    message = wsss("serve", repository, "--environment", tmp_path)
    assert message.code == 1 and "is no virtual environment" in message.err


def test_options_of_the_server_on_path_are_its_own(tmp_path: Path) -> None:
    server = LocalServer(Installation(tmp_path / "tritonserver", None), tmp_path / "models")
    assert not any(option.startswith("--backend-directory") for option in server.command)
    assert f"--model-repository={tmp_path / 'models'}" in server.command
    assert "--http-address=127.0.0.1" in server.command
    server.close()


def test_the_python_of_a_wheel_finds_its_libraries(tmp_path: Path) -> None:
    wheel = Wheel(tmp_path, tmp_path / "site" / "pytriton" / "tritonserver", "3.11", "/lib/python")
    variables = Installation(tmp_path / "tritonserver", wheel).variables()
    assert variables["LD_LIBRARY_PATH"].startswith(f"{tmp_path}/site/nvidia_pytriton.libs:/lib/")
    assert variables["PATH"].startswith(f"{tmp_path}/bin:")


def test_a_broken_model_is_not_ready_and_the_others_serve_if_asked_to(
    triton_environment: Installation, repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(repository, tmp_path / "models")
    (tmp_path / "models" / "cam" / "1" / "model.onnx").write_bytes(b"no graph")
    server = LocalServer(
        find_server(), tmp_path / "models", options=["--exit-on-error=false"], drain_seconds=5
    )
    try:
        server.start(wait=False)
        with pytest.raises(ServerError, match="is not ready after 8 s"):
            server.wait_ready(8)
        server.start(wait=False)
        while not server.is_live():
            assert not server.has_ended()
        graph = None
        for _ in range(60):
            try:
                graph = open_triton(f"http://{server.http}", "segmenter", retries=50)
                break
            except Exception:
                assert not server.has_ended()
        assert graph is not None and not server.is_ready()
        assert graph.run(IMAGE, ["label"])["label"].shape == (1, 160, 200)
        graph.close()
    finally:
        server.close()


def test_bench_rows_tell_latencies_and_batches(
    triton_environment: Installation, bundle: Path
) -> None:
    wheel = find_server().wheel
    assert wheel is not None
    outcome = wsss(
        *("bench", "serve", "--model", bundle, "--environment", wheel.root, "--size", 48, 64),
        *("--count", 2, "--concurrency", "1,8", "--requests", 24, "--shared-memory", "--json"),
    )
    rows = json.loads(outcome.succeeded().out)["rows"]
    assert [row["client"] for row in rows] == [
        "in process",
        *("http", "http", "grpc", "grpc", "http, shared memory", "http, shared memory"),
    ]
    assert rows[0]["speedup"] == 1 and rows[0]["executions"] is None
    for row in rows[1:]:
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["labels_equal"] >= 0.999
        assert row["mean_batch"] == pytest.approx(24 / row["executions"])
    assert all(
        row["executions"] == 24 for row in rows if row["concurrency"] == 1 and row["executions"]
    )
    assert all(row["executions"] < 24 for row in rows if row["concurrency"] == 8)
    message = wsss("bench", "serve", "--model", bundle, "--concurrency", "1,none").line()
    assert "--concurrency is '1,none', expected numbers from 1" in message
