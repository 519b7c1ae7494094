"""Where a `tritonserver` is: on PATH, or in a virtual environment with the wheel `nvidia-pytriton`.

A server on PATH (NVIDIA's container) brings all its backends. The wheel holds the server with its
Python backend alone; there a Python model of ours takes the place of the backend `onnxruntime`
(`stand_ins/`), so that one repository is served as it is by either: the real server around it,
ONNX Runtime inside of it.
"""

import json
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ...errors import MissingDependencyError

CONTAINER = "nvcr.io/nvidia/tritonserver:26.09-py3"
"""The release whose clients we test with; an older one has holes that NVIDIA has closed since."""
ENVIRONMENT_VARIABLE = "WSSS_TRITON_ENV"
STAND_INS = Path(__file__).parent / "stand_ins"

_PROGRAM, _STUB = "tritonserver", "triton_python_backend_stub"
_QUESTION = """
import importlib.util, json, sys, sysconfig
spec = importlib.util.find_spec("pytriton")  # found, not imported: it is slow and not needed
try:
    import numpy
    version = numpy.__version__
except ImportError:
    version = None
print(json.dumps({
    "package": spec and spec.submodule_search_locations[0],
    "python": "%d.%d" % sys.version_info[:2],
    "libraries": sysconfig.get_config_var("LIBDIR") or "",
    "numpy": version,
    "onnxruntime": importlib.util.find_spec("onnxruntime") is not None,
}))
"""


@dataclass(frozen=True)
class Wheel:
    """Parts of the wheel in its virtual environment.

    Attributes:
        root: of the environment.
        distribution: folder with bin, backends, caches and python_backend_stubs.
        python: minor version, such as 3.11.
        libraries: folder of that Python's shared library.
    """

    root: Path
    distribution: Path
    python: str
    libraries: str

    @property
    def stub(self) -> Path:
        """The process that runs a Python model; one for each minor version of Python."""
        return self.distribution / "python_backend_stubs" / self.python / _STUB


@dataclass(frozen=True)
class Installation:
    """A server that can be started; `wheel` is None where it brings its backends itself."""

    program: Path
    wheel: Wheel | None

    def make_backends(self, folder: Path) -> list[str]:
        """Options that tell the server its backends; the wheel's are put together in `folder`.

        The wheel keeps the stub of each Python apart, and the server looks for it beside the
        backend.
        """
        if self.wheel is None:
            return []
        backends = folder / "backends"
        shutil.copytree(self.wheel.distribution / "backends" / "python", backends / "python")
        stub = backends / "python" / _STUB
        shutil.copy2(self.wheel.stub, stub)
        stub.chmod(0o755)
        for stand_in in STAND_INS.iterdir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(stand_in, backends / stand_in.name, ignore=ignored)
        caches = self.wheel.distribution / "caches"
        return [f"--backend-directory={backends}", f"--cache-directory={caches}"]

    def variables(self) -> dict[str, str]:
        """Environment of the server's process."""
        variables = dict(os.environ)
        if self.wheel is None:
            return variables
        # The copied stub finds neither the wheel's libraries by itself nor libpython.
        libraries = [str(self.wheel.distribution.parents[1] / "nvidia_pytriton.libs")]
        libraries += [self.wheel.libraries, variables.get("LD_LIBRARY_PATH", "")]
        variables["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
        # The stub takes its packages from the python3 that is first on PATH, not from PYTHONPATH.
        variables["PATH"] = f"{self.wheel.root / 'bin'}:{variables.get('PATH', '')}"
        variables.pop("PYTHONPATH", None)
        return variables


def find_installation(environment: Path | None = None) -> Installation:
    """The server of an environment; else one on PATH; else that of `WSSS_TRITON_ENV`.

    Args:
        environment: virtual environment with `nvidia-pytriton`.

    Raises:
        MissingDependencyError: there is none, or a part of it is missing; the message says which.
    """
    if environment is None:
        program = shutil.which(_PROGRAM)
        if program is not None:
            return Installation(Path(program), None)
        named = os.environ.get(ENVIRONMENT_VARIABLE)
        if not named:
            raise MissingDependencyError(
                f"no {_PROGRAM} on PATH: run NVIDIA's container, or give `environment` (or "
                f"{ENVIRONMENT_VARIABLE}) a virtual environment in which you did pip install "
                "nvidia-pytriton==0.7.0 onnxruntime 'numpy<2'"
            )
        environment = Path(named)
    wheel = _wheel(environment)
    return Installation(wheel.distribution / "bin" / _PROGRAM, wheel)


def _wheel(root: Path) -> Wheel:
    python = root / "bin" / "python"
    remedy = "make it by `make triton-env`, or choose another"
    if not python.exists():
        raise MissingDependencyError(f"'{root}' is no virtual environment: {remedy}")
    asked = subprocess.run([python, "-c", _QUESTION], capture_output=True, text=True)
    if asked.returncode:
        reason = asked.stderr.strip().splitlines()[-1:] or ["no message"]
        raise MissingDependencyError(f"'{python}' failed ({reason[0][:200]}): {remedy}")
    found = json.loads(asked.stdout)
    if found["package"] is None:
        raise MissingDependencyError(f"'{root}' lacks nvidia-pytriton: {remedy}")
    if not found["onnxruntime"]:
        raise MissingDependencyError(f"'{root}' lacks onnxruntime: {remedy}")
    # With numpy 2 every tensor that a Python model returns is empty, without a word about it.
    if found["numpy"] is None or int(found["numpy"].split(".")[0]) >= 2:
        raise MissingDependencyError(
            f"numpy in '{root}' is {found['numpy']}, expected below 2: {remedy}"
        )
    wheel = Wheel(root, Path(found["package"], _PROGRAM), found["python"], found["libraries"])
    for path in (wheel.distribution / "bin" / _PROGRAM, wheel.stub):
        if not path.exists():
            raise MissingDependencyError(f"'{path}' is missing: {remedy}")
    return wheel


def container_command(repository: Path, *, host: str, ports: tuple[int, int, int]) -> str:
    """The line that serves a repository by NVIDIA's container; with a GPU, add `--gpus all`.

    Args:
        host: address on which the ports are opened; the container itself is not told of it.
        ports: of HTTP, gRPC and metrics.
    """
    opened = " ".join(
        f"-p {host}:{outside}:{inside}"
        for outside, inside in zip(ports, (8000, 8001, 8002), strict=True)
    )
    return (
        f"docker run --rm --init --shm-size 1g {opened} "
        f"-v {shlex.quote(str(repository.resolve()))}:/models:ro {CONTAINER} "
        "tritonserver --model-repository=/models --model-control-mode=none"
    )
