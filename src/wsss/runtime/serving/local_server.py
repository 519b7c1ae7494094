"""A `tritonserver` process of ours: started, awaited, stopped, and nothing of it left behind.

Also when this process is killed: see `guard.py`.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError, ServerError
from .guard import Guard, remove_shared_memory
from .installation import Installation

READY_SECONDS = 120.0
DRAIN_SECONDS = 30
"""How long a server that was told to end may answer what it has accepted."""
LOOPBACK = "127.0.0.1"
_ERROR_LINE = re.compile(r"E\d{4} ")
"""How Triton begins a line of its log that tells an error."""
_LINES, _LOG_TAIL = 3, 1500
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Ports:
    """Of one server; they stay when it is started again."""

    http: int
    grpc: int
    metrics: int


def free_ports() -> Ports:
    """Three ports that were free a moment ago; another process may take one before we do."""
    with socket.socket() as first, socket.socket() as second, socket.socket() as third:
        sockets = (first, second, third)
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return Ports(*(each.getsockname()[1] for each in sockets))


def _require_free(host: str, ports: Ports) -> None:
    """Refuse a port that is taken, or whoever has it would be taken for our server.

    Raises:
        ConfigError: with the port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for name, port in (("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.metrics)):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ConfigError(
                    f"{host}:{port} cannot be used ({error.strerror}): choose another --{name}-port"
                ) from None


class LocalServer:
    """A server that can be stopped, killed and started again on the same ports.

    Attributes:
        ports: where it listens.
        shared_memory: prefix of the files below /dev/shm that belong to this server.
        drain_seconds: how long it may answer what it has accepted; Triton counts into it how long
            it waits for HTTP connections that stay open, and the unloading of its models.
    """

    def __init__(
        self,
        installation: Installation,
        repository: Path,
        *,
        ports: Ports | None = None,
        host: str = LOOPBACK,
        options: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        log: Path | None = None,
        drain_seconds: int = DRAIN_SECONDS,
    ) -> None:
        """Prepare everything but the process.

        Args:
            ports: free ones by default.
            host: address to listen on; anything but loopback opens the server to others.
            options: further ones of tritonserver, such as --model-control-mode=explicit.
            variables: further environment variables.
            log: file for what the server writes; by default one that is gone with the server.
        """
        self.ports = ports or free_ports()
        self.shared_memory = f"wsss_{uuid.uuid4().hex[:8]}_"
        self._host, self.drain_seconds = host, drain_seconds
        self._folder = Path(tempfile.mkdtemp(prefix="wsss_triton_"))
        self._log = log or self._folder / "log"
        self._command = [
            str(installation.program),
            f"--model-repository={repository}",
            *installation.make_backends(self._folder),
            *self._listening(),
            f"--exit-timeout-secs={drain_seconds}",
            # Each Python model has a region below /dev/shm; a prefix of its own tells it from
            # those of servers that run at the same time.
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory}",
            *options,
        ]
        self._variables = installation.variables() | dict(variables or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None

    def _listening(self) -> list[str]:
        ports = {"http": self.ports.http, "grpc": self.ports.grpc, "metrics": self.ports.metrics}
        options = []
        for name, port in ports.items():
            options += [f"--{name}-address={self._host}", f"--{name}-port={port}"]
        return [*options, "--allow-gpu-metrics=false"] if not _has_gpu() else options

    @property
    def command(self) -> list[str]:
        """The program with its options."""
        return list(self._command)

    @property
    def http(self) -> str:
        """host:port of this machine."""
        return f"{self._reached}:{self.ports.http}"

    @property
    def grpc(self) -> str:
        """host:port of this machine."""
        return f"{self._reached}:{self.ports.grpc}"

    @property
    def metrics(self) -> str:
        """URL of the Prometheus text."""
        return f"http://{self._reached}:{self.ports.metrics}/metrics"

    @property
    def _reached(self) -> str:
        return LOOPBACK if self._host in ("0.0.0.0", "::") else self._host

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything that the server wrote, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self, *, wait: bool = True, ready_seconds: float = READY_SECONDS) -> None:
        """Start the process, and wait until it is ready; see `wait_ready`."""
        assert self._process is None, "the server runs already"
        _require_free(self._host, self.ports)
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its stubs belong to the group, which ends as a whole
            )
        self._guard = Guard(self._process.pid, self.shared_memory, self._folder)
        if wait:
            self.wait_ready(ready_seconds)

    def wait_ready(
        self, seconds: float = READY_SECONDS, should_stop: Callable[[], bool] = lambda: False
    ) -> bool:
        """Wait until all models are loaded; False where `should_stop` said so before.

        Raises:
            ServerError: it ended, or the time passed; nothing runs then.
        """
        assert self._process is not None, "the server was not started"
        end = time.monotonic() + seconds
        # A Python model without its model.py makes the server wait for ever: hence an end.
        while not self.is_ready():
            code = self._process.poll()
            if code is not None or time.monotonic() > end:
                self.kill()
                state = f"is not ready after {seconds:.0f} s"
                raise self.failure(state if code is None else f"ended with {code}")
            if should_stop():
                return False
            time.sleep(_POLL_SECONDS)
        if self.has_ended():
            self.kill()
            raise self.failure("ended while it started")
        return True

    def failure(self, state: str) -> ServerError:
        """What happened, with what the server says of it."""
        lines = [line for line in self.log.splitlines() if line.strip()]
        errors = [line for line in lines if _ERROR_LINE.match(line) or "error:" in line]
        told = "; ".join(line.strip() for line in (errors or lines)[-_LINES:]) or "no log"
        return ServerError(f"tritonserver {state}: {told[-_LOG_TAIL:]}")

    def is_ready(self) -> bool:
        """Whether all models are loaded."""
        try:
            url = f"http://{self.http}/v2/health/ready"
            with urllib.request.urlopen(url, timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:  # not there yet, or status 400
            return False

    def has_ended(self) -> bool:
        """Whether the process is gone, by itself or by a signal."""
        return self._process is None or self._process.poll() is not None

    def terminate(self) -> None:
        """SIGTERM: the server answers what it has accepted and ends."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM, and wait; killed when it does not end. Returns the exit status."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(self.drain_seconds + 10)
        return self._end()

    def kill(self) -> int:
        """SIGKILL, as if the machine had lost it."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        return self._end()

    def end_now(self) -> None:
        """SIGKILL for whoever waits in `stop`, as a signal handler may send it."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Stop, and remove what the server has left."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> int:
        """Stubs and shared memory survive a killed server, and a server stopped while loading."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        self._process = None
        remove_shared_memory(self.shared_memory)
        if self._guard is not None:  # last, or a kill in between would find nobody who cleans up
            self._guard.end()
        return code


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists()
