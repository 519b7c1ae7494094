"""Which backend runs a graph, and on what. Backends are imported here, when they are used."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from ...errors import ConfigError, MissingDependencyError
from .contract import OpenGraph

Backend = Literal["auto", "torch", "onnxruntime", "tensorrt", "triton"]
Device = Literal["auto", "cpu", "cuda", "tensorrt"]
"""tensorrt: TensorRT within onnxruntime, which compiles a graph when it first runs."""

PLAN = ".plan"
"""Ending of an engine that TensorRT compiled; everything else is an ONNX file."""


def open_graph(
    path: Path,
    *,
    backend: Backend = "auto",
    device: Device = "auto",
    threads: int | None = None,
    allow_host_code: bool = False,
) -> OpenGraph:
    """Open a graph for running.

    Args:
        path: an ONNX file, or an engine that ends in `.plan`.
        backend: auto takes tensorrt for an engine, else onnxruntime if installed, else torch.
        device: auto takes a GPU where the backend can use it.
        threads: that compute on the CPU, >= 1; None lets the backend choose.
        allow_host_code: see `open_plan`.

    Raises:
        ConfigError: an unknown name, or a combination that does not exist.
        MissingDependencyError: the backend or what the device needs is not installed.
        DataError: no file that can be read.
        ArtifactError: the file is damaged, or contains what the backend does not know.
    """
    _check(backend, device, threads)
    chosen = _backend_for(path, backend)
    if chosen == "tensorrt":
        return _open_plan(path, device, allow_host_code)
    if chosen == "onnxruntime":
        from . import onnxruntime_backend

        if device == "tensorrt":
            return onnxruntime_backend.open_onnx(path, device=device, threads=threads)
        where = _device(device, onnxruntime_backend.has_cuda)
        return onnxruntime_backend.open_onnx(path, device=where, threads=threads)
    if device == "tensorrt":
        raise ConfigError("device 'tensorrt' is onnxruntime's: choose that backend, auto or cuda")
    if find_spec("torch") is None:
        raise MissingDependencyError(
            "torch is not installed: pip install 'wsss[train]', or choose the backend onnxruntime"
        )
    from . import torch_backend

    where = _device(device, torch_backend.has_cuda)
    return torch_backend.open_torch(path, device=where, threads=threads)


def _check(backend: str, device: str, threads: int | None) -> None:
    for option, name, choices in (
        ("backend", backend, get_args(Backend)),
        ("device", device, get_args(Device)),
    ):
        if name not in choices:
            raise ConfigError(f"unknown {option} '{name}': choose one of {', '.join(choices)}")
    if backend == "triton":
        raise ConfigError("backend 'triton' opens no file but a model on a server: `open_triton`")
    if threads is not None and threads < 1:
        raise ConfigError(f"`threads` is {threads}, must be at least 1")


def _backend_for(path: Path, backend: Backend) -> Backend:
    """The backend that runs this file.

    Raises:
        ConfigError: the one asked for takes another kind of file.
        MissingDependencyError: none is installed.
    """
    is_plan = path.suffix == PLAN
    if backend == "auto":
        if is_plan:
            return "tensorrt"
        installed: tuple[Backend, ...] = ("onnxruntime", "torch")
        for name in installed:
            if find_spec(name) is not None:
                return name
        raise MissingDependencyError(
            "no backend is installed: pip install 'wsss[cpu]', or 'wsss[gpu]' for an NVIDIA GPU, "
            "or 'wsss[train]' for torch"
        )
    if is_plan != (backend == "tensorrt"):
        wanted, other = ("tensorrt", "an engine") if is_plan else ("onnxruntime", "an ONNX file")
        raise ConfigError(f"backend '{backend}': {path} is {other}, choose auto or {wanted}")
    return backend


def _device(
    device: Literal["auto", "cpu", "cuda"], has_cuda: Callable[[], bool]
) -> Literal["cpu", "cuda"]:
    if device == "auto":
        return "cuda" if has_cuda() else "cpu"
    return device


def _open_plan(path: Path, device: Device, allow_host_code: bool) -> OpenGraph:
    if device in ("cpu", "tensorrt"):
        raise ConfigError(f"device '{device}': {path} is a TensorRT engine, choose auto or cuda")
    from .tensorrt_backend import open_plan

    return open_plan(path, allow_host_code=allow_host_code)
