"""The triton backend where no server answers: addresses, patience, what is missing.

What needs a server is in `tests/serving/test_client.py`.
"""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import BadStatusLine, IncompleteRead, RemoteDisconnected
from importlib.util import find_spec

import pytest

from wsss.errors import ConfigError, ServerError
from wsss.runtime.backends.triton.backend import _Gate, open_triton
from wsss.runtime.backends.triton.faults import (
    Fault,
    FaultKind,
    GaveUp,
    Retrier,
    RetryPolicy,
    Stopped,
    answered_fault,
    fault_of,
)
from wsss.runtime.backends.triton.http import HttpClient
from wsss.runtime.backends.triton.options import TritonOptions, parse_url

needs_client = pytest.mark.skipif(
    find_spec("tritonclient") is None,
    reason="needs tritonclient: pip install 'wsss[triton]'",
)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nobody listens, kept from others."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# Addresses and options


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("http://gpu-3.lab:80/", "http://gpu-3.lab:80"),
        ("HTTPS://gpu_3", "https://gpu_3:8000"),
        ("grpc://10.0.0.7", "grpc://10.0.0.7:8001"),
        ("grpcs://[::1]:9", "grpcs://[::1]:9"),
        ("grpc://[2001:db8::1]", "grpc://[2001:db8::1]:8001"),
    ],
)
def test_url(text: str, whole: str) -> None:
    url = parse_url(text)
    assert str(url) == whole
    assert parse_url(str(url)) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://a:1",
        "http://",
        "a:b",
        "a:1:2",
        "http://a/v2",
        "http://me@a",
        "[::1",
        "a,b",
        "a:0",
        "a:65536",
        "::1",
    ],
)
def test_no_url(text: str) -> None:
    with pytest.raises(ConfigError, match=r"no URL of a Triton server|1 to 65535"):
        parse_url(text)


@pytest.mark.parametrize(
    "options",
    [
        {"in_flight": 0},
        {"in_flight": 1025},
        {"deadline_s": 0.0},
        {"deadline_s": float("nan")},
        {"deadline_s": float("inf")},
        {"patience_s": -1.0},
        {"patience_s": float("nan")},
        {"model": "../label"},
        {"url": "http://"},
    ],
)
def test_impossible_options(options: dict[str, object]) -> None:
    (value,) = options.values()
    with pytest.raises(ConfigError, match=f"{value:g}" if type(value) is float else f"{value}"):
        TritonOptions(**{"url": "localhost", **options})


def test_impossible_arguments() -> None:
    for message, options in (
        ("version 'new' of model 'label' is no number", {"version": "new"}),
        ("`deadline_s` is 0 s", {"deadline_s": 0.0}),
        ("`retries` is -1, must be 0 or more", {"retries": -1}),
    ):
        with pytest.raises(ConfigError, match=message):
            open_triton("localhost:1", "label", **options)


# Nobody there


@needs_client
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_refused_connection(protocol: str, closed_port: int) -> None:
    with pytest.raises(ServerError) as caught:
        open_triton(f"{protocol}://127.0.0.1:{closed_port}", "label", retries=1)
    line = str(caught.value)
    assert f"no Triton at {protocol}://127.0.0.1:{closed_port}" in line
    assert "Connection refused" in line and "tried 2 times" in line and "wsss serve" in line
    assert "\n" not in line


@needs_client
def test_somebody_who_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for protocol in ("http", "grpc"):
            url = f"{protocol}://127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(ServerError):
                open_triton(url, "label", deadline_s=0.2, retries=0)


def test_without_tritonclient() -> None:
    code = (
        "import sys\n"
        "sys.modules['tritonclient'] = None\n"
        "import wsss.runtime\n"
        "from wsss.errors import MissingDependencyError\n"
        "from wsss.runtime.backends.triton.backend import open_triton\n"
        "for url in ('http://localhost:1', 'grpc://localhost:1'):\n"
        "    try:\n"
        "        open_triton(url, 'label')\n"
        "    except MissingDependencyError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("tritonclient" in line and "pip install 'wsss[triton]'" in line for line in lines)


# Servers that trickle

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"


@contextmanager
def trickling(*, at_once: int) -> Iterator[str]:
    """A server that reads a request, answers so many bytes, and then one in 10 ms for 30 s."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        is_over = threading.Event()

        def serve() -> None:
            link, _ = listener.accept()
            answer = HEAD + b"0" * 100_000
            with link, suppress(OSError):  # the client leaves
                link.recv(1 << 16)
                link.sendall(answer[:at_once])
                for place in range(at_once, at_once + 3000):
                    if is_over.wait(0.01):
                        return
                    link.sendall(answer[place : place + 1])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            is_over.set()
            thread.join()


@pytest.mark.parametrize("at_once", [0, 20, len(HEAD), len(HEAD) + 10])
def test_a_deadline_counts_for_all_bytes_together(at_once: int) -> None:
    """The socket's own would not: there is always a byte within it."""
    with trickling(at_once=at_once) as url, pytest.raises(TimeoutError):
        HttpClient(parse_url(url)).send("GET", "v2", 0.3)


def test_an_answer_that_breaks_off() -> None:
    with trickling(at_once=len(HEAD) + 10) as url:
        client = HttpClient(parse_url(url))
        timer = threading.Timer(0.1, client.close)
        timer.start()
        with pytest.raises(IncompleteRead) as caught:
            client.send("GET", "v2", 60.0)
        timer.join()
    fault = fault_of(caught.value)
    assert fault is not None and fault.kind is FaultKind.LOST


def test_no_connection_is_not_a_broken_one(closed_port: int) -> None:
    with pytest.raises(Fault) as caught:
        HttpClient(parse_url(f"127.0.0.1:{closed_port}")).send("GET", "v2", 5.0)
    assert caught.value.kind is FaultKind.AWAY


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError("timed out"), FaultKind.LATE),
        (ConnectionResetError(104, "Connection reset by peer"), FaultKind.LOST),
        (RemoteDisconnected("Remote end closed connection without response"), FaultKind.LOST),
        (IncompleteRead(b"ab", 7), FaultKind.LOST),
        (BadStatusLine("SSH-2.0"), FaultKind.FOREIGN),
        (KeyError("a mistake of ours"), None),
    ],
)
def test_fault_of_an_exception(error: Exception, kind: FaultKind | None) -> None:
    fault = fault_of(error)
    assert (fault.kind if fault else None) is kind


# Trying again


class Clock:
    """Time that passes only in pauses."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        self.pauses.append(seconds)
        return False

    def retrier(self, policy: RetryPolicy, share: float = 1.0) -> Retrier:
        return Retrier(policy, clock=lambda: self.now, wait=self.wait, chance=lambda: share)


class Attempts:
    """Fails with these faults and then succeeds."""

    def __init__(self, *kinds: FaultKind) -> None:
        self.kinds = list(kinds)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.kinds:
            raise Fault(self.kinds.pop(0), "as told")
        return "answer"


def test_pauses_double_up_to_a_limit() -> None:
    policy = RetryPolicy(retries=100, total_s=100.0, first_s=0.1, longest_s=1.0)
    clock = Clock()
    attempts = Attempts(*[FaultKind.BUSY, FaultKind.LOST] * 3)
    assert clock.retrier(policy).call(attempts) == "answer"
    assert clock.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert attempts.calls == 7
    # Half of a pause is chance.
    assert policy.pause(0, 0.0) == pytest.approx(0.05)
    assert policy.pause(10**6, 0.0) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", sorted(FaultKind, key=lambda kind: kind.name))
def test_only_what_time_can_heal_is_tried_again(kind: FaultKind) -> None:
    clock, attempts = Clock(), Attempts(kind)
    retrier = clock.retrier(RetryPolicy())
    if kind in (FaultKind.BUSY, FaultKind.LOST, FaultKind.AWAY):
        assert retrier.call(attempts) == "answer"
        return
    with pytest.raises(GaveUp) as caught:
        retrier.call(attempts)
    assert (attempts.calls, clock.pauses, caught.value.tries) == (1, [], 1)
    assert caught.value.fault.kind is kind


def test_bounds_in_number_and_time() -> None:
    for policy, calls in (
        (RetryPolicy(retries=0), 1),
        (RetryPolicy(retries=3, total_s=1000.0), 4),
        # Pauses of 1, 2, 4 s: a fourth one of 8 s would end after 10 s.
        (RetryPolicy(retries=1000, total_s=10.0, first_s=1.0, longest_s=100.0), 4),
        (RetryPolicy(retries=1000, total_s=0.0), 1),
    ):
        clock, attempts = Clock(), Attempts(*[FaultKind.LOST] * 2000)
        with pytest.raises(GaveUp) as caught:
            clock.retrier(policy).call(attempts)
        assert attempts.calls == caught.value.tries == calls
        assert clock.now <= policy.total_s


def test_patience_counts_from_the_first_failure() -> None:
    """Not from the beginning of a request, which may have waited long for its answer."""
    clock = Clock()
    attempts = Attempts(FaultKind.LOST)

    def slow() -> str:
        clock.now += 50.0
        return attempts()

    assert clock.retrier(RetryPolicy(total_s=1.0)).call(slow) == "answer"


def test_stop_ends_a_pause() -> None:
    retrier = Retrier(RetryPolicy(first_s=3600.0, longest_s=3600.0, total_s=1e6))
    timer = threading.Timer(0.05, retrier.stop.set)
    timer.start()
    with pytest.raises(Stopped):
        retrier.call(Attempts(FaultKind.BUSY))
    timer.join()
    with pytest.raises(Stopped):
        retrier.call(Attempts())


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        ("503", "[request id: <id_unknown>] Exceeds maximum queue size", FaultKind.BUSY),
        ("StatusCode.UNAVAILABLE", "Exceeds maximum queue size", FaultKind.BUSY),
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses", FaultKind.AWAY),
        ("StatusCode.UNAVAILABLE", "Server is stopping, scheduler has stopped", FaultKind.BUSY),
        ("StatusCode.UNAVAILABLE", "'x' version 1 is not at ready state", FaultKind.BUSY),
        ("StatusCode.UNAVAILABLE", "Stream is already closed", FaultKind.LOST),
        ("StatusCode.UNAVAILABLE", "words of a gRPC to come", FaultKind.LOST),
        ("503", "words of a Triton to come", FaultKind.BUSY),
        ("StatusCode.UNAVAILABLE", "Socket closed", FaultKind.LOST),
        ("StatusCode.UNAVAILABLE", "Request timeout expired", FaultKind.LATE),
        ("503", "Request timeout expired", FaultKind.LATE),
        ("StatusCode.NOT_FOUND", "Request for unknown model: 'x' is not found", FaultKind.UNKNOWN),
        ("404", "Not Found", FaultKind.FOREIGN),
        ("500", "Failed to process the request(s)", FaultKind.FAILED),
        ("StatusCode.INTERNAL", "Stub process 'x' is not healthy.", FaultKind.BUSY),
        ("StatusCode.INVALID_ARGUMENT", "unexpected shape for input", FaultKind.INVALID),
        ("400", "unexpected shape for input", FaultKind.INVALID),
    ],
)
def test_fault_of_an_answer(status: str, text: str, kind: FaultKind) -> None:
    fault = answered_fault(status, text)
    assert fault.kind is kind
    assert "request id" not in fault.text


# Closing


def test_a_gate_waits_for_those_inside() -> None:
    gate, num_inside, may_leave = _Gate(), threading.Semaphore(0), threading.Event()
    ended: list[str] = []

    def work(error: Exception | None) -> None:
        try:
            with gate.passing():
                num_inside.release()
                assert may_leave.wait(60)
                if error is not None:
                    raise error
            ended.append("done")
        except RuntimeError as closed:
            ended.append(f"{closed} because of {closed.__cause__!r}")

    threads = [threading.Thread(target=work, args=(e,)) for e in (None, OSError(9, "cut off"))]
    for thread in threads:
        thread.start()
    assert num_inside.acquire(timeout=60) and num_inside.acquire(timeout=60)
    assert not gate.close(0.0)
    with pytest.raises(RuntimeError, match="this graph was closed"), gate.passing():
        pass
    may_leave.set()
    assert gate.close(60.0)
    for thread in threads:
        thread.join()
    assert len(ended) == 2 and "done" in ended
    assert any("this graph was closed" in text and "cut off" in text for text in ended)
