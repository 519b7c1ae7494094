"""The backends, and which one runs a graph.

A new backend is a file in this folder and a row in `BACKENDS`: the command line, `wsss doctor` and
the error messages read the table. Nothing heavy is imported here; a backend is imported when it is
used.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError

if TYPE_CHECKING:
    from .contract import OpenFile, OpenGraph  # which imports numpy

Backend = str
"""A name in `BACKENDS`, or auto."""
Device = str
"""One of the devices of a backend, or auto."""

ONNX, PLAN = ".onnx", ".plan"
"""Endings of a graph, and of an engine that TensorRT compiled."""


@dataclass(frozen=True)
class BackendEntry:
    """A row of `BACKENDS`.

    Attributes:
        open: module below this folder and the function in it that opens a file; see `OpenFile`.
            Empty for a backend that opens models on a server instead: see `open_triton`.
        devices: what the backend can compute on, besides auto.
        package: the package that must be importable.
        extra: the extra of wsss that installs the package.
        suffix: ending of the files that the backend opens; empty for a server.
    """

    open: str
    devices: tuple[Device, ...]
    package: str
    extra: str
    suffix: str


BACKENDS: dict[Backend, BackendEntry] = {
    "onnxruntime": BackendEntry(
        # The device tensorrt is TensorRT within onnxruntime, which compiles a graph when it first
        # runs.
        "onnxruntime_backend:open_onnx",
        ("cpu", "cuda", "tensorrt"),
        "onnxruntime",
        "cpu",
        ONNX,
    ),
    "tensorrt": BackendEntry("tensorrt_backend:open_plan", ("cuda",), "tensorrt", "tensorrt", PLAN),
    "triton": BackendEntry("", ("cpu", "cuda"), "tritonclient", "triton", ""),
}
"""Name -> how to open a file, devices, package, extra, file suffix."""

AUTO = "auto"
DEVICES: tuple[Device, ...] = tuple(
    dict.fromkeys(device for entry in BACKENDS.values() for device in entry.devices)
)
"""Devices of all backends."""


def open_graph(
    path: Path,
    *,
    backend: Backend = AUTO,
    device: Device = AUTO,
    threads: int | None = None,
    allow_host_code: bool = False,
) -> "OpenGraph":
    """Open a graph for running.

    Args:
        path: an ONNX file, or an engine that ends in `.plan`.
        backend: auto takes the backend for this kind of file: tensorrt for an engine, else
            onnxruntime.
        device: auto takes a GPU where the backend can use it.
        threads: threads that compute on the CPU, >= 1; None lets the backend choose.
        allow_host_code: see `open_plan`.

    Raises:
        ConfigError: an unknown name, or a combination that does not exist.
        MissingDependencyError: the backend or what the device needs is not installed.
        DataError: no file that can be read.
        ArtifactError: the file is damaged, or contains what the backend does not know.
    """
    require_known(backend, device, threads)
    name = _backend_for(path, backend)
    entry = BACKENDS[name]
    if device not in (AUTO, *entry.devices):
        raise ConfigError(
            f"backend '{name}' does not run {path} on device '{device}': choose one of "
            f"{', '.join((AUTO, *entry.devices))}"
        )
    module, _, function = entry.open.partition(":")
    open_file: OpenFile = getattr(import_module(f".{module}", __package__), function)
    return open_file(path, device=device, threads=threads, allow_host_code=allow_host_code)


def require_known(backend: Backend, device: Device, threads: int | None) -> None:
    """Refuse names that no backend for bundles has, before anything is opened.

    Raises:
        ConfigError: an unknown name, or no thread.
    """
    _require_backend(backend)
    _require("device", device, DEVICES)
    if threads is not None and threads < 1:
        raise ConfigError(f"`threads` is {threads}, must be at least 1")


def _require_backend(name: Backend) -> None:
    """Refuse a name that no backend for bundles has.

    Raises:
        ConfigError: the name is unknown, or torch, which computes runs only.
    """
    if name == "torch":
        raise ConfigError(
            "`torch` no longer computes bundles: use backend onnxruntime (pip install "
            f"'wsss[{BACKENDS['onnxruntime'].extra}]'), or label with the run itself"
        )
    _require("backend", name, tuple(BACKENDS))


def _require(what: str, name: str, choices: tuple[str, ...]) -> None:
    if name not in (AUTO, *choices):
        raise ConfigError(f"unknown {what} '{name}': choose one of {', '.join((AUTO, *choices))}")


def _backend_for(path: Path, backend: Backend) -> Backend:
    """The backend that runs this file; whatever is no engine counts as an ONNX file.

    Raises:
        ConfigError: the backend that was asked for does not open such a file.
    """
    by_suffix = {entry.suffix: name for name, entry in reversed(BACKENDS.items()) if entry.suffix}
    suffix = path.suffix if path.suffix in by_suffix else ONNX
    fitting = by_suffix[suffix]
    if backend in (AUTO, fitting):
        return fitting
    wanted = BACKENDS[backend].suffix
    if not wanted:
        raise ConfigError(f"backend '{backend}' opens no file but a model on a server")
    if wanted != suffix:
        raise ConfigError(
            f"backend '{backend}' opens files that end in {wanted}, not {path}: choose auto or "
            f"{fitting}"
        )
    return backend
