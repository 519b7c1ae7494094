"""`wsss label --backend triton`: what it writes, and what is left of a job that was disturbed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tritonclient.http", reason="needs tritonclient: pip install 'wsss[triton]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

from command_line import Outcome, break_file, wsss
from synthetic_jobs import records_of
from tiny_run import files_of
from triton_server import triton_server

from wsss.runtime.backends.triton.backend import TritonGraph
from wsss.runtime.backends.triton.faults import RetryPolicy
from wsss.runtime.bulk.work import bounded_threads
from wsss.runtime.bundle.open import MANIFEST, seal
from wsss.runtime.io.image_io import read_label_map
from wsss.runtime.serving.local_server import LocalServer

pytestmark = pytest.mark.triton
SIZES = ((48, 64), (40, 56), (64, 48))
LABELS = ("disc", "bar", "ring", "disc;ring", "")


def write_images(folder: Path, count: int) -> Path:
    """Noise of three sizes, which follow each other, and the labels of every image."""
    folder.mkdir(parents=True)
    rows = ["file,labels"]
    for number in range(count):
        rng = np.random.default_rng(number)
        blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        height, width = SIZES[number % len(SIZES)]
        Image.fromarray(blocks).resize((width, height)).save(folder / f"image {number:03}.png")
        rows.append(f"image {number:03}.png,{LABELS[number % len(LABELS)]}")
    folder.with_suffix(".csv").write_text("\n".join(rows) + "\n")
    return folder


def stored(folder: Path) -> dict[str, bytes]:
    """What a job must reproduce to the bit: all but what tells of time, and locks."""
    names = ("job.json", "failures.csv", "inputs/*", "units/*", "masks/**/*.png")
    return files_of(folder, *names)


def is_running(pid: str) -> bool:
    """Whether a process is there and not just waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def counts(outcome: Outcome) -> tuple[int, int, int]:
    """Labelled, kept and failed images."""
    printed = json.loads(outcome.out)
    return printed["labelled"], printed["kept"], printed["failed"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images; not to be changed."""
    return write_images(tmp_path_factory.mktemp("images") / "images", 24)


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, server: LocalServer) -> str:
    return f"{request.param}://{server.http if request.param == 'http' else server.grpc}"


@pytest.fixture(scope="module")
def in_process(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that labels by onnxruntime without a server, one image after the other."""
    made: dict[tuple[object, ...], Path] = {}

    def label(*arguments: object) -> Path:
        if arguments not in made:
            out = tmp_path_factory.mktemp("in_process") / "out"
            command = ("label", *arguments, "--model", bundle, "--backend", "onnxruntime")
            assert wsss(*command, "--out", out).code in (0, 3)
            made[arguments] = out
        return made[arguments]

    return label


@pytest.fixture
def restarted(triton_environment: object, repository: Path) -> Iterator[LocalServer]:
    """A server that a test may kill."""
    with triton_server(repository) as running:
        yield running


def through(server: str, bundle: Path, out: Path, *arguments: object) -> tuple[object, ...]:
    """The arguments of a job by a server."""
    options = ("--backend", "triton", "--url", server, "--model", bundle, "--out", out, "--json")
    return ("label", *options, *arguments)


@pytest.mark.parametrize("by", ["walk", "segmenter"])
def test_same_files_as_in_process(
    by: str, url: str, bundle: Path, images: Path, in_process: Callable[..., Path], tmp_path: Path
) -> None:
    arguments: tuple[object, ...] = (images, "--mode", by)
    if by == "walk":
        arguments += ("--labels", images.with_suffix(".csv"))
    expected = stored(in_process(*arguments))
    for in_flight in (1, 8):
        out = tmp_path / str(in_flight)
        found = wsss(*through(url, bundle, out, *arguments, "--in-flight", in_flight))
        assert counts(found.succeeded()) == (24, 0, 0)
        assert stored(out) == expected
        assert counts(wsss(*through(url, bundle, out, *arguments))) == (0, 24, 0)
    assert len({expected[name] for name in expected if name.endswith(".png")}) > 3
    folder = in_process(*arguments)
    changes = [record.change for record in records_of(folder)]
    assert len(changes) == 24 and all((change is None) == (by == "segmenter") for change in changes)


def test_a_job_goes_on_elsewhere(
    server: LocalServer,
    bundle: Path,
    images: Path,
    in_process: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Neither the URL nor the number of requests belongs to what made the labels."""
    expected = in_process(images, "--mode", "walk")
    out = shutil.copytree(expected, tmp_path / "out")
    records = sorted(out.glob("units/*"))
    assert len(records) == 3
    for path in records[:2]:
        path.unlink()
    grpc, http = f"grpc://{server.grpc}", f"http://{server.http}"
    assert counts(wsss(*through(grpc, bundle, out, images, "--mode", "walk"))) == (16, 8, 0)
    records[0].unlink()
    arguments = (images, "--mode", "walk", "--in-flight", 2)
    assert counts(wsss(*through(http, bundle, out, *arguments))) == (8, 16, 0)
    records[0].unlink()
    command = ("label", images, "--model", bundle, "--out", out, "--mode", "walk", "--json")
    assert counts(wsss(*command, "--backend", "onnxruntime")) == (8, 16, 0)
    assert stored(out) == stored(expected)


def test_broken_images_among_them(
    url: str, bundle: Path, images: Path, in_process: Callable[..., Path], tmp_path: Path
) -> None:
    spoilt = shutil.copytree(images, tmp_path / "images")
    for number, how in ((3, "truncated"), (4, "zero-byte"), (17, "corrupt")):
        break_file(spoilt / f"image {number:03}.png", how)
    expected = in_process(spoilt, "--mode", "segmenter")
    found = wsss(*through(url, bundle, tmp_path / "out", spoilt, "--mode", "segmenter"))
    assert found.code == 3 and counts(found) == (21, 0, 3)
    assert stored(tmp_path / "out") == stored(expected)


def test_the_ensemble_when_asked_for(
    url: str, bundle: Path, images: Path, in_process: Callable[..., Path], tmp_path: Path
) -> None:
    out, arguments = tmp_path / "out", (images, "--mode", "walk")
    ensemble = (*arguments, "--server-model", "label_ensemble")
    wsss(*through(url, bundle, out, *ensemble)).succeeded()
    expected, found = stored(in_process(*arguments)), stored(out)
    assert found.keys() == expected.keys()
    # Other graphs sum in another order, which may tip a pixel between two labels.
    names = [name for name in expected if name.endswith(".png")]
    labels = [
        [read_label_map(folder / name) for name in names]
        for folder in (out, in_process(*arguments))
    ]
    same = [np.array_equal(one, other) for one, other in zip(*labels, strict=True)]
    assert sum(same) >= 0.9 * len(same)
    assert "different backend" in wsss(*through(url, bundle, out, *arguments)).line()


def test_requests_share_batches(server: LocalServer, bundle: Path, tmp_path: Path) -> None:
    """Three sizes in turn: without sorting hardly two of a kind would meet in the queue."""

    def metric(name: str) -> float:
        with urllib.request.urlopen(server.metrics) as answer:
            text = answer.read().decode()
        values = re.findall(rf'^{name}{{model="segmenter",[^}}]*}} (\S+)', text, re.MULTILINE)
        return sum(map(float, values))

    images = write_images(tmp_path / "images", 48)
    names = ("nv_inference_count", "nv_inference_exec_count")
    before = [metric(name) for name in names]
    arguments = (images, "--mode", "segmenter", "--in-flight", 16)
    wsss(*through(f"grpc://{server.grpc}", bundle, tmp_path / "out", *arguments)).succeeded()
    inferences, executions = (
        metric(name) - start for name, start in zip(names, before, strict=True)
    )
    assert inferences == 48
    assert executions < inferences


# What is refused before any work


def test_another_bundle_is_refused(url: str, bundle: Path, images: Path, tmp_path: Path) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    content = json.loads((other / MANIFEST).read_text())
    content["name"] = "another"
    del content["digest"]
    (other / MANIFEST).write_bytes(seal(content))
    line = wsss(*through(url, other, tmp_path / "out", images)).line()
    assert "was made of bundle" in line and "serve this bundle" in line
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused(
    server: LocalServer, bundle: Path, images: Path, tmp_path: Path
) -> None:
    url = f"grpc://{server.grpc}"
    for name, message in (
        ("nothing", "has no model 'nothing'; models that are ready: "),
        ("segmenter", "takes image, expected image, present as in graph 'label'"),
    ):
        arguments = (images, "--mode", "walk", "--server-model", name)
        assert message in wsss(*through(url, bundle, tmp_path / "out", *arguments)).line()
    assert not (tmp_path / "out").exists()


# Outages


def disturb(server: LocalServer, out: Path, after: int) -> threading.Thread:
    """Kill the server when so many images are written, and start it again."""

    def work() -> None:
        while len(list(out.glob("masks/*.png"))) < after:
            time.sleep(0.005)
        server.kill()
        server.start()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def killed_and_restarted(
    server: LocalServer, bundle: Path, images: Path, expected: Path, out: Path, count: int
) -> None:
    """A job in which the server is killed at a third; every image is written exactly once."""
    killing = disturb(server, out, count // 3)
    url = f"grpc://{server.grpc}"
    found = wsss(*through(url, bundle, out, images, "--mode", "walk", "--in-flight", 4))
    killing.join(60)
    assert not killing.is_alive()
    assert counts(found.succeeded()) == (count, 0, 0)
    assert stored(out) == stored(expected)


def test_server_killed_in_the_middle(
    restarted: LocalServer, bundle: Path, in_process: Callable[..., Path], tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images", 60)
    expected = in_process(images, "--mode", "walk")
    killed_and_restarted(restarted, bundle, images, expected, tmp_path / "out", 60)


@pytest.mark.slow
def test_server_killed_in_the_middle_of_500(
    restarted: LocalServer, bundle: Path, in_process: Callable[..., Path], tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images", 500)
    expected = in_process(images, "--mode", "walk")
    killed_and_restarted(restarted, bundle, images, expected, tmp_path / "out", 500)


@pytest.mark.slow
def test_server_that_stays_away(
    restarted: LocalServer,
    bundle: Path,
    images: Path,
    in_process: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """One line, exit 1, what was finished is kept; later the job goes on."""
    out, url = tmp_path / "out", f"http://{restarted.http}"

    def kill() -> None:
        while len(list(out.glob("masks/*.png"))) < 5:
            time.sleep(0.005)
        restarted.kill()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    arguments = (images, "--mode", "walk", "--in-flight", 2)
    line = wsss(*through(url, bundle, out, *arguments, "--patience", 0.5)).line()
    thread.join(60)
    assert "no Triton at" in line and "start it by `wsss serve`" in line
    finished = stored(out)
    expected = stored(in_process(images, "--mode", "walk"))
    assert len(list(out.glob("masks/*.png"))) >= 5 and len(finished) < len(expected)
    assert finished.items() <= expected.items()
    restarted.start()
    kept = 8 * len(list(out.glob("units/*")))
    found = counts(wsss(*through(url, bundle, out, *arguments)).succeeded())
    assert found == (24 - kept, kept, 0)
    assert stored(out) == expected


# The end of the client


def test_interrupted_while_the_server_is_away(
    restarted: LocalServer,
    bundle: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The graph is closed, which ends the pauses between tries, before threads are waited for."""
    events: list[str] = []
    close = TritonGraph.close

    def watched_close(self: TritonGraph) -> None:
        events.append("close")
        close(self)

    def watched_clock() -> float:
        events.append("wait for threads")
        return time.monotonic()

    monkeypatch.setattr(TritonGraph, "close", watched_close)
    monkeypatch.setattr(bounded_threads, "time", SimpleNamespace(monotonic=watched_clock))
    pause = RetryPolicy.pause
    is_pausing = threading.Event()

    def watched(self: RetryPolicy, retry: int, share: float) -> float:
        is_pausing.set()
        return pause(self, retry, share)

    monkeypatch.setattr(RetryPolicy, "pause", watched)
    out = tmp_path / "out"
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        while len(list(out.glob("masks/*.png"))) < 5:
            time.sleep(0.005)
        restarted.kill()
        if is_pausing.wait(60):
            events.clear()  # a graph was closed when the job began
            signal.pthread_kill(main, signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    arguments = (images, "--mode", "walk", "--in-flight", 4, "--patience", 600, "--workers", 0)
    outcome = wsss(*through(f"http://{restarted.http}", bundle, out, *arguments))
    thread.join()
    assert outcome.code == 130 and "interrupted" in outcome.err
    assert events[:2] == ["close", "wait for threads"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_client_ended_in_the_middle(
    number: signal.Signals,
    server: LocalServer,
    bundle: Path,
    in_process: Callable[..., Path],
    tmp_path: Path,
) -> None:
    images, out = write_images(tmp_path / "images", 60), tmp_path / "out"
    arguments = through(f"grpc://{server.grpc}", bundle, out, images, "--mode", "walk")
    client = subprocess.Popen(
        [sys.executable, "-m", "wsss", *map(str, arguments), "--in-flight", "2"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in its background has SIGINT ignored in all below it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while len(list(out.glob("masks/*.png"))) < 5:
            assert client.poll() is None, client.communicate()
            time.sleep(0.005)
        children = Path(f"/proc/{client.pid}/task/{client.pid}/children").read_text().split()
        assert any(is_running(child) for child in children)
        client.send_signal(number)
        printed, said = client.communicate(timeout=60)
    finally:
        client.kill()
        client.wait()
    if number != signal.SIGKILL:
        assert client.returncode == 130, said
        assert printed == "" and said.splitlines()[-1].startswith("wsss: interrupted")
        assert "Traceback" not in said and not list(out.glob("**/*.tmp"))
    # The workers notice the end of a killed process a moment later.
    end = time.monotonic() + 30
    while any(is_running(child) for child in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(is_running(child) for child in children)
    finished = stored(out)
    expected = stored(in_process(images, "--mode", "walk"))
    assert len(list(out.glob("masks/*.png"))) >= 5 and len(finished) < len(expected)
    assert finished.items() <= expected.items()
