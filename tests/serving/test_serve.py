"""`wsss serve` and `wsss bench serve`: real servers that start, drain and end."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.http", reason="needs tritonclient: pip install 'wsss[triton]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

from command_line import wsss
from triton_server import find_server, is_live, num_waiting

from wsss.errors import ServerError
from wsss.runtime.backends.triton.backend import open_triton
from wsss.runtime.backends.triton.faults import Fault, FaultKind
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


def group_exists(group: int) -> bool:
    """Whether a process of the group is left that does something."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, found = path.read_text().rpartition(")")[2].split()[:3]
            if int(found) == group and state != "Z":
                return True
    return False


def folder_and_prefix(printed: dict[str, object]) -> tuple[Path, str]:
    """What a running server has: its folder, and how its shared memory is called."""
    command = Path(f"/proc/{printed['pid']}/cmdline").read_bytes().decode()
    (backends,) = re.findall(r"--backend-directory=([^\0]+)", command)
    (prefix,) = re.findall(r"shm-region-prefix-name=([^\0]+)", command)
    return Path(backends).parent, prefix


def regions(prefix: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{prefix}*"))


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 0), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_bundle_is_served_until_it_is_told_to_end(
    triton_environment: Installation, bundle: Path, number: int, code: int
) -> None:
    with served(bundle) as (process, printed):
        folder, prefix = folder_and_prefix(printed)
        assert set(printed["models"]) >= {"cam", "label", "label_ensemble", "segmenter"}
        graph = open_triton(f"grpc://{printed['grpc']}", "segmenter")
        assert graph.run(IMAGE, ["label"])["label"].shape == (1, 160, 200)
        graph.close()
        assert regions(prefix) and folder.is_dir()
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == code
        expected = ["answering what was accepted, then ending"]
        assert said.splitlines() == expected + ["wsss: ended by Ctrl-C"] * (code == 130)
    assert not regions(prefix) and not folder.exists()


def test_nothing_outlives_a_command_that_is_killed(
    triton_environment: Installation, repository: Path
) -> None:
    """Neither the server nor the processes of its models, its memory or its folder."""
    with served(repository) as (process, printed):
        folder, prefix = folder_and_prefix(printed)
        group = int(str(printed["pid"]))
        assert group_exists(group) and regions(prefix) and folder.is_dir()
        process.kill()
        process.communicate()

    def is_anything_left() -> bool:
        return group_exists(group) or bool(regions(prefix)) or folder.exists()

    end = time.monotonic() + 60
    while is_anything_left() and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_anything_left()


def test_a_second_signal_kills(triton_environment: Installation, repository: Path) -> None:
    with served(repository) as (process, printed):
        folder, prefix = folder_and_prefix(printed)

        def end() -> None:
            process.terminate()
            assert process.stderr is not None
            assert process.stderr.readline() == "answering what was accepted, then ending\n"
            process.terminate()

        answers, errors = ask_and_end(printed, "http", end)
        assert errors and len(answers) + len(errors) == NUM_LARGE
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 1
        assert said == "wsss: tritonserver was killed by the second signal: requests may be lost\n"
    assert not regions(prefix) and not folder.exists()


@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_a_port_that_is_taken(
    triton_environment: Installation, repository: Path, name: str
) -> None:
    wheel = find_server().wheel
    assert wheel is not None
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = dataclasses.asdict(free_ports()) | {name: taken.getsockname()[1]}
        options = [part for each in ports for part in (f"--{each}-port", ports[each])]
        line = wsss("serve", repository, "--environment", wheel.root, *options).line()
    assert f"127.0.0.1:{ports[name]} cannot be used (Address already in use)" in line
    assert line.endswith(f"choose another --{name}-port")


NUM_LARGE = 4
LARGE = {"image": np.full((8, 160, 200, 3), 90, np.uint8)}
"""As many images as the server joins: these requests are computed one after the other."""


def ask_and_end(
    printed: dict[str, object],
    protocol: str,
    end: Callable[[], None],
) -> tuple[list[np.ndarray], list[ServerError]]:
    """Large requests, of which the server has accepted all when it is ended, and what they get."""
    graph = open_triton(f"{protocol}://{printed[protocol]}", "segmenter", retries=0)
    answers: list[np.ndarray] = []
    errors: list[ServerError] = []

    def ask() -> None:
        try:
            answers.append(graph.run(LARGE, ["label"])["label"])
        except ServerError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(NUM_LARGE)]
    for thread in threads:
        thread.start()
    while num_waiting(str(printed["metrics"]), "segmenter") < NUM_LARGE - 1:
        assert not answers[1:] and not errors
    end()
    for thread in threads:
        thread.join()
    graph.close()
    return answers, errors


@pytest.mark.parametrize("protocol", [pytest.param("http", marks=pytest.mark.slow), "grpc"])
def test_what_was_accepted_is_answered_before_the_end(
    triton_environment: Installation, repository: Path, protocol: str
) -> None:
    with served(repository) as (process, printed):
        graph = open_triton(f"http://{printed['http']}", "segmenter")
        expected = graph.run(LARGE, ["label"])["label"]
        graph.close()
        answers, errors = ask_and_end(printed, protocol, process.terminate)
        assert errors == [] and len(answers) == NUM_LARGE
        assert all(np.array_equal(answer, expected) for answer in answers)
        assert process.wait(60) == 0


@pytest.mark.parametrize("protocol", [pytest.param("http", marks=pytest.mark.slow), "grpc"])
def test_what_was_accepted_by_a_server_that_is_killed_is_lost(
    triton_environment: Installation, repository: Path, protocol: str
) -> None:
    """Control of the test above: it would notice."""
    with served(repository) as (_, printed):
        pid = int(str(printed["pid"]))
        answers, errors = ask_and_end(printed, protocol, lambda: os.kill(pid, signal.SIGKILL))
        assert errors and len(answers) + len(errors) == NUM_LARGE
        kinds = {error.__cause__.kind for error in errors if isinstance(error.__cause__, Fault)}
        assert kinds == {FaultKind.LOST}


@pytest.mark.parametrize("protocol", [pytest.param("http", marks=pytest.mark.slow), "grpc"])
def test_a_busy_server_ends(
    triton_environment: Installation, repository: Path, protocol: str
) -> None:
    """Clients that would ask for ever do not keep it: each is refused in the end."""
    answers: list[np.ndarray] = []
    refused: list[ServerError] = []
    with served(repository) as (process, printed):
        graph = open_triton(f"{protocol}://{printed[protocol]}", "segmenter", retries=0)
        expected = graph.run(IMAGE, ["label"])["label"]
        is_busy = threading.Event()

        def ask() -> None:
            while True:
                try:
                    answers.append(graph.run(IMAGE, ["label"])["label"])
                except ServerError as error:
                    refused.append(error)
                    return
                if len(answers) >= 4:
                    is_busy.set()

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert is_busy.wait(60)
        process.terminate()
        for thread in threads:
            thread.join()
        assert process.wait(60) == 0
        graph.close()
    assert len(refused) == 4
    assert all(np.array_equal(answer, expected) for answer in answers)
    kinds = {error.__cause__.kind for error in refused if isinstance(error.__cause__, Fault)}
    # Over HTTP Triton hangs up on those that come too late, without reading what they send.
    hung_up = {FaultKind.LOST} if protocol == "http" else set()
    assert kinds and kinds <= {FaultKind.BUSY, FaultKind.AWAY} | hung_up


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
        while not is_live(server):
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
        *("--count", 2, "--concurrency", "1,8", "--requests", 24, "--json"),
    )
    rows = json.loads(outcome.succeeded().out)["rows"]
    assert [row["client"] for row in rows] == [
        "in process",
        *("http", "http", "grpc", "grpc"),
    ]
    assert rows[0]["times_in_process"] == 1 and rows[0]["executions"] is None
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
