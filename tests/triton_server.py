"""A real `tritonserver` on loopback, from a virtual environment of its own (`make triton-env`).

The wheel `nvidia-pytriton` holds the server with its Python backend alone. Beside that backend
stands ours of the name `onnxruntime` (`triton_backends/`), so that a repository is served as it
is: the real server around it, ONNX Runtime inside of it. Environment: `WSSS_TRITON_ENV`, or
`.venv-triton` at the root of the repository.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAND_INS = Path(__file__).parent / "triton_backends"
READY_SECONDS = 60.0
EXIT_SECONDS = 5
_LOG_TAIL = 4000
_SHARED_MEMORY = Path("/dev/shm")
_QUESTION = """
import importlib.util, json, sys, sysconfig
spec = importlib.util.find_spec("pytriton")  # found, not imported: it is slow and not needed
import numpy
print(json.dumps({
    "package": spec and spec.submodule_search_locations[0],
    "python": "%d.%d" % sys.version_info[:2],
    "libraries": sysconfig.get_config_var("LIBDIR") or "",
    "numpy": numpy.__version__,
}))
"""


class TritonUnavailableError(Exception):
    """Why no server can be started here; the reason of a skip."""


class TritonStartError(Exception):
    """The server did not become ready; the message ends with its log."""


@dataclass(frozen=True)
class TritonEnvironment:
    """Where the parts of the server lie.

    Attributes:
        distribution: folder with bin, backends, caches and python_backend_stubs.
        python: minor version, such as 3.11.
        libraries: of that Python.
    """

    root: Path
    distribution: Path
    python: str
    libraries: str

    @property
    def server(self) -> Path:
        """The program."""
        return self.distribution / "bin" / "tritonserver"

    @property
    def stub(self) -> Path:
        """The process that runs a Python model; one for each minor version of Python."""
        return self.distribution / "python_backend_stubs" / self.python / _STUB


_STUB = "triton_python_backend_stub"


@lru_cache(maxsize=1)
def find_environment() -> TritonEnvironment:
    """The server's virtual environment.

    Raises:
        TritonUnavailableError: absent or incomplete; the message names what is missing.
    """
    root = Path(os.environ.get("WSSS_TRITON_ENV") or ROOT / ".venv-triton")
    python = root / "bin" / "python"
    if not python.exists():
        raise TritonUnavailableError(f"no tritonserver: '{root}' is missing, run `make triton-env`")
    asked = subprocess.run([python, "-c", _QUESTION], capture_output=True, text=True)
    if asked.returncode:
        raise TritonUnavailableError(f"'{python}' failed: {asked.stderr.strip()[-200:]}")
    answer = json.loads(asked.stdout)
    if answer["package"] is None:
        raise TritonUnavailableError(f"'{root}' lacks nvidia-pytriton, run `make triton-env`")
    # With numpy 2 every tensor that a Python model returns is empty, without a word about it.
    if int(answer["numpy"].split(".")[0]) >= 2:
        raise TritonUnavailableError(f"numpy in '{root}' is {answer['numpy']}, expected below 2")
    distribution = Path(answer["package"], "tritonserver")
    found = TritonEnvironment(root, distribution, answer["python"], answer["libraries"])
    for path in (found.server, found.stub):
        if not path.exists():
            raise TritonUnavailableError(f"no tritonserver: '{path}' is missing")
    return found


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
            each.bind(("127.0.0.1", 0))
        return Ports(*(each.getsockname()[1] for each in sockets))


class TritonServer:
    """A server process that can be stopped, killed and started again on the same ports.

    Attributes:
        http, grpc: host:port for clients; metrics: URL.
        shared_memory: prefix of the files below /dev/shm that belong to this server.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        *,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        """Prepare everything but the process.

        Args:
            options: further ones of tritonserver, such as --model-control-mode=explicit.
            environment: further variables.
        """
        self._installed = find_environment()
        self.repository = Path(repository)
        self.shared_memory = f"wsss_{uuid.uuid4().hex[:8]}_"
        self._options, self._extra = list(options), dict(environment or {})
        self._ready_seconds = ready_seconds
        self._folder = Path(tempfile.mkdtemp(prefix="wsss_triton_"))
        self._backends = self._make_backends()
        self._ports = free_ports()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def http(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self._ports.http}"

    @property
    def grpc(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self._ports.grpc}"

    @property
    def metrics(self) -> str:
        """URL of the Prometheus text."""
        return f"http://127.0.0.1:{self._ports.metrics}/metrics"

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything that the server wrote, over all its starts."""
        path = self._folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, *, wait: bool = True) -> None:
        """Start the process, and wait until it is ready.

        Raises:
            TritonStartError: it ended, or the time passed; nothing runs then.
        """
        assert self._process is None, "the server runs already"
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=self._variables(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its stubs belong to the group, which ends as a whole
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """See `start`."""
        assert self._process is not None, "the server was not started"
        end = time.monotonic() + self._ready_seconds
        # A Python model without its model.py makes the server wait for ever: hence an end.
        while not self.is_ready():
            code = self._process.poll()
            if code is not None or time.monotonic() > end:
                self.kill()
                state = "not ready in time" if code is None else f"ended with {code}"
                # Wide tables of settings stand between the reason and the end.
                lines = [line for line in self.log.splitlines() if line[:1] not in ("|", "+")]
                tail = "\n".join(lines)[-_LOG_TAIL:]
                raise TritonStartError(f"tritonserver {state}:\n{tail}")
            time.sleep(0.05)

    def is_ready(self) -> bool:
        """Whether all models are loaded."""
        return self._answers("v2/health/ready")

    def is_live(self) -> bool:
        """Whether the server answers at all."""
        return self._answers("v2/health/live")

    def terminate(self) -> None:
        """SIGTERM: the server answers what it has accepted and ends."""
        os.kill(self.pid, signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM, and wait; killed when it does not end. Returns the exit status."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_SECONDS + 10)
        return self._end()

    def kill(self) -> int:
        """SIGKILL, as if the machine had lost it."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        return self._end()

    def restart(self) -> None:
        """Stop if it runs, and start again on the same ports."""
        self.stop()
        self.start()

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
        for path in _SHARED_MEMORY.glob(f"{self.shared_memory}*"):
            path.unlink(missing_ok=True)
        return code

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.http}/{path}", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:  # not there yet, or status 400
            return False

    def _make_backends(self) -> Path:
        """Backends with the stub of our Python, which the wheel keeps elsewhere."""
        backends = self._folder / "backends"
        shutil.copytree(self._installed.distribution / "backends" / "python", backends / "python")
        stub = backends / "python" / _STUB
        shutil.copy2(self._installed.stub, stub)
        stub.chmod(0o755)
        for folder in STAND_INS.iterdir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(folder, backends / folder.name, ignore=ignored)
        return backends

    def _command(self) -> list[str]:
        ports = self._ports
        return [
            str(self._installed.server),
            f"--model-repository={self.repository}",
            f"--backend-directory={self._backends}",
            f"--cache-directory={self._installed.distribution / 'caches'}",
            "--http-address=127.0.0.1",
            f"--http-port={ports.http}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={ports.grpc}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={ports.metrics}",
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={EXIT_SECONDS}",
            # Each Python model has a region below /dev/shm; a prefix of its own tells it from
            # those of servers that run at the same time.
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory}",
            *self._options,
        ]

    def _variables(self) -> dict[str, str]:
        installed, variables = self._installed, dict(os.environ)
        # The copied stub does not find the wheel's libraries by itself, nor libpython.
        libraries = [str(installed.distribution.parents[1] / "nvidia_pytriton.libs")]
        libraries += [installed.libraries, variables.get("LD_LIBRARY_PATH", "")]
        variables["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
        # The stub takes its packages from the python3 that is first on PATH, not from PYTHONPATH.
        variables["PATH"] = f"{installed.root / 'bin'}:{variables.get('PATH', '')}"
        variables.pop("PYTHONPATH", None)
        variables.setdefault("OMP_NUM_THREADS", "1")
        return variables | self._extra


@contextmanager
def triton_server(
    repository: str | os.PathLike[str],
    *,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    ready_seconds: float = READY_SECONDS,
) -> Iterator[TritonServer]:
    """A server that is ready; at the end nothing of it is left."""
    server = TritonServer(
        repository, options=options, environment=environment, ready_seconds=ready_seconds
    )
    try:
        server.start()
        yield server
    finally:
        server.close()
