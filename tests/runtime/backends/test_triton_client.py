"""The triton backend where no server answers: addresses, patience, shared memory, what is missing.

What needs a server is in `tests/serving/test_client.py`.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import BadStatusLine, IncompleteRead, RemoteDisconnected
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from wsss.errors import ConfigError, ServerError
from wsss.runtime.backends import triton_memory
from wsss.runtime.backends.triton.backend import open_triton
from wsss.runtime.backends.triton.faults import Fault, FaultKind, answered_fault, fault_of
from wsss.runtime.backends.triton.gate import Gate
from wsss.runtime.backends.triton.http import HttpClient
from wsss.runtime.backends.triton.options import TritonOptions, parse_url
from wsss.runtime.backends.triton.retry import GaveUp, Retrier, RetryPolicy, Stopped
from wsss.runtime.backends.triton_memory import (
    FOLDER,
    PREFIX,
    NoMemoryError,
    RegionPool,
    aligned,
    is_possible,
)

needs_client = pytest.mark.skipif(
    find_spec("tritonclient") is None,
    reason="needs tritonclient: pip install 'wsss[triton]'",
)
needs_memory = pytest.mark.skipif(not is_possible(), reason="needs /dev/shm")


def own_memory(pid: int) -> list[str]:
    return sorted(path.name for path in Path(FOLDER).glob(f"{PREFIX}{pid}_*"))


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nobody listens, kept from others."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# Addresses and options


@pytest.mark.parametrize(
    ("text", "whole", "is_loopback"),
    [
        ("localhost:8000", "http://localhost:8000", True),
        ("127.0.0.1", "http://127.0.0.1:8000", True),
        ("http://gpu-3.lab:80/", "http://gpu-3.lab:80", False),
        ("HTTPS://gpu_3", "https://gpu_3:8000", False),
        ("grpc://10.0.0.7", "grpc://10.0.0.7:8001", False),
        ("grpcs://[::1]:9", "grpcs://[::1]:9", True),
        ("grpc://[2001:db8::1]", "grpc://[2001:db8::1]:8001", False),
    ],
)
def test_url(text: str, whole: str, is_loopback: bool) -> None:
    url = parse_url(text)
    assert str(url) == whole
    assert url.is_loopback == is_loopback
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
        {"shared_memory": "maybe"},
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
        ("unknown `shared_memory` 'yes': choose one of auto, on, off", {"shared_memory": "yes"}),
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
        ("500", "Cannot unregister 'x', it is currently in use.", FaultKind.IN_USE),
        ("StatusCode.INTERNAL", "it is currently in use.", FaultKind.IN_USE),
        ("StatusCode.UNAVAILABLE", "Socket closed", FaultKind.LOST),
        ("StatusCode.UNAVAILABLE", "Request timeout expired", FaultKind.LATE),
        ("503", "Request timeout expired", FaultKind.LATE),
        ("StatusCode.NOT_FOUND", "Request for unknown model: 'x' is not found", FaultKind.UNKNOWN),
        ("404", "Not Found", FaultKind.FOREIGN),
        ("404", "Unable to find shared memory region: 'x'", FaultKind.NO_REGION),
        ("500", "shared memory size specified with the request", FaultKind.SMALL_REGION),
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


# Shared memory

POOL = """
import os, sys
from wsss.runtime.backends.triton_memory import RegionPool
from wsss.runtime.backends.triton.options import parse_url
from wsss.runtime.backends.triton.transport import connect
pool = RegionPool(connect(parse_url(sys.argv[1])))
regions = [pool.take(size) for size in (1, 5_000_000)]
pool.give_back(regions[0])
"""


@pytest.fixture
def pool(closed_port: int) -> Iterator[RegionPool]:
    """Regions for a server that is not there: none of them is registered."""
    pytest.importorskip("tritonclient.http", reason="needs tritonclient")
    from wsss.runtime.backends.triton.transport import connect

    made = RegionPool(connect(parse_url(f"127.0.0.1:{closed_port}")))
    yield made
    made.close()


@needs_memory
def test_regions_are_shared_in_turn_and_removed(pool: RegionPool) -> None:
    first, second = pool.take(100), pool.take(3_000_000)
    assert first.num_bytes >= 100 and second.num_bytes >= 3_000_000
    assert own_memory(os.getpid()) == sorted([first.name, second.name])
    pool.give_back(first)
    pool.give_back(second)
    assert pool.take(2_000_000) is second
    third = pool.take(9_000_000)  # in the stead of the first one, which is too small
    assert own_memory(os.getpid()) == sorted([second.name, third.name])
    pool.retire(third)  # its request ended in doubt
    assert own_memory(os.getpid()) == [second.name]
    assert pool.take(1) is not third
    pool.close()
    assert own_memory(os.getpid()) == []
    pool.give_back(second)  # by a thread that was not done
    assert own_memory(os.getpid()) == []
    with pytest.raises(NoMemoryError):
        pool.take(1)
    assert own_memory(os.getpid()) == []


@needs_memory
def test_a_block_is_removed_once(pool: RegionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its request may end while the pool is closed: a second time would close another file."""
    removed: list[object] = []
    destroy = triton_memory._destroy

    def watched(region: triton_memory.Region) -> None:
        removed.append(region)
        destroy(region)

    monkeypatch.setattr(triton_memory, "_destroy", watched)
    answered, doubtful, free = (pool.take(size << 20) for size in (1, 2, 3))
    pool.give_back(free)
    pool.close()
    pool.give_back(answered)
    pool.retire(doubtful)
    assert len(removed) == 3 and set(removed) == {answered, doubtful, free}


class ServerStub:
    """Knows regions, and says that one is in use so many times."""

    def __init__(self, num_refusals: int) -> None:
        self.num_refusals = num_refusals
        self.known: set[str] = set()

    def register(self, name: str, key: str, num_bytes: int, deadline_s: float) -> None:
        self.known.add(name)

    def unregister(self, name: str, deadline_s: float) -> None:
        if self.num_refusals > 0:
            self.num_refusals -= 1
            raise Fault(FaultKind.IN_USE, "it is currently in use")
        self.known.remove(name)


@needs_memory
def test_a_region_that_is_still_in_use_is_forgotten_a_moment_later() -> None:
    server = ServerStub(num_refusals=3)
    pool = RegionPool(server)  # type: ignore[arg-type]
    regions = [pool.take(1), pool.take(1)]
    for region in regions:
        pool.register(region, 1.0)
        pool.give_back(region)
    pool.close()
    assert server.num_refusals == 0 and server.known == set()
    assert own_memory(os.getpid()) == []


def test_a_gate_waits_for_those_inside() -> None:
    gate, num_inside, may_leave = Gate(), threading.Semaphore(0), threading.Event()
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


@needs_memory
def test_arrays_in_a_region(pool: RegionPool) -> None:
    arrays = [
        np.arange(15, dtype=np.uint8).reshape(3, 5),
        np.linspace(0, 1, 14, dtype=np.float32).reshape(2, 7, 1),
        np.array(3.5),
    ]
    region = pool.take(1000)
    offset = 0
    for array in arrays:
        region.write(offset, array)
        found = region.read(offset, array.dtype.name, array.shape)
        np.testing.assert_array_equal(found, array)
        offset = aligned(offset + array.nbytes)
        assert offset % 64 == 0
    kept = region.read(0, "uint8", (15,))
    region.write(0, np.zeros(15, np.uint8))
    np.testing.assert_array_equal(kept, np.arange(15))


@needs_memory
def test_more_memory_than_there_is(pool: RegionPool) -> None:
    """An error before anything is written, which would end the process."""
    status = os.statvfs(FOLDER)
    with pytest.raises(NoMemoryError, match=FOLDER):
        pool.take(status.f_frsize * status.f_blocks + 1)
    assert own_memory(os.getpid()) == []


@needs_memory
@needs_client
@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)", "1 / 0", "os.kill(os.getpid(), 9)"])
def test_nothing_outlives_the_process(ending: str, closed_port: int) -> None:
    count = f"sum(name.startswith(f'{PREFIX}{{os.getpid()}}_') for name in os.listdir('{FOLDER}'))"
    code = f"{POOL}print(os.getpid(), {count}, flush=True)\n{ending}"
    url = f"127.0.0.1:{closed_port}"
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True)
    pid, num_files = map(int, done.stdout.split())
    assert num_files == 2
    assert (done.returncode == -signal.SIGKILL) == ("kill" in ending)
    # After kill -9 Python's resource tracker cleans up, a moment later.
    end = time.monotonic() + 30
    while own_memory(pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert own_memory(pid) == []
