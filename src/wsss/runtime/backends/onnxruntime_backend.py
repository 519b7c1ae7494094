"""Graphs run by onnxruntime, on a CPU or a GPU: the fastest way on a CPU.

onnxruntime takes a provider (what computes) as a wish, and prints something when it uses another
one. Here a provider that was asked for is the one that runs, or opening the graph is an error.
"""

import contextlib
import importlib
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArtifactError, ConfigError, MissingDependencyError, one_line
from ..io.files import open_regular
from .contract import (
    Array,
    GraphDescription,
    TensorSpec,
    axis_sizes,
    check_inputs,
    closed,
    run_failure,
)

_CPU, _CUDA, _TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
_PROVIDERS: dict[str, str] = {"cpu": _CPU, "cuda": _CUDA, "tensorrt": _TENSORRT}
_OPTIONS: dict[str, dict[str, str]] = {
    # TF32 keeps 10 bits of a float32. The walk multiplies dozens of times and would not be exact
    # to the tolerance that it was exported with.
    _CUDA: {"use_tf32": "0"},
}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({name})": name for name in ("uint8", "int8", "uint16", "int16")},
    **{f"tensor({name})": name for name in ("uint32", "int32", "uint64", "int64")},
}
_WARNING, _FATAL = 2, 4
"""Severities from which onnxruntime prints: its default, and ours, since its errors reach the user
as exceptions, in one line."""

_log = logging.getLogger(__name__)


class OnnxruntimeGraph:
    """A graph that onnxruntime runs; several threads may run it at once."""

    def __init__(self, session: Any, description: GraphDescription) -> None:
        self._session: Any = session
        self._description = description

    def describe(self) -> GraphDescription:
        """Inputs, outputs and where it runs."""
        return self._description

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Compute outputs, as `OpenGraph.run` says."""
        session = self._session
        if session is None:
            raise closed()
        check_inputs(self._description, inputs, outputs)
        if outputs is None:
            outputs = [spec.name for spec in self._description.outputs]
        if not outputs:  # to onnxruntime no names mean all
            return {}
        # Not ascontiguousarray, which gives a number without axes one.
        contiguous = {name: np.require(array, requirements="C") for name, array in inputs.items()}
        try:
            results = session.run(list(outputs), contiguous)
        except Exception as error:  # its exceptions share no base class
            shapes = ", ".join(f"`{name}` {array.shape}" for name, array in inputs.items())
            raise run_failure(f"onnxruntime on {shapes}", error) from error
        return dict(zip(outputs, results, strict=True))

    def close(self) -> None:
        """Give memory back."""
        self._session = None


def open_onnx(
    path: Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    allow_host_code: bool = False,
) -> OnnxruntimeGraph:
    """Open an ONNX file.

    Args:
        device: the provider; tensorrt compiles the graph when it first runs, which takes minutes;
            auto takes cuda where there is a GPU, else cpu.
        threads: threads that compute one operator on the CPU; None lets onnxruntime choose.
        allow_host_code: ignored; a graph has no code of its own.

    Raises:
        DataError: no file that can be read.
        ArtifactError: a damaged one, or one that onnxruntime cannot run.
        MissingDependencyError: onnxruntime is absent or broken, or lacks the provider.
        ConfigError: an unknown device.
    """
    if device != "auto" and device not in _PROVIDERS:
        choices = ", ".join(("auto", *_PROVIDERS))
        raise ConfigError(f"unknown device '{device}': choose one of {choices}")
    open_regular(path).close()
    onnxruntime = _import()
    if device == "auto":
        device = "cuda" if has_cuda() else "cpu"
    if device == "cpu":
        session = _session(onnxruntime, path, [_CPU], threads)
    else:
        session = _session_on_gpu(onnxruntime, path, _PROVIDERS[device], threads)
    inputs = [_spec(value, path) for value in session.get_inputs()]
    inputs += [_spec(value, path, True) for value in session.get_overridable_initializers()]
    outputs = tuple(_spec(value, path) for value in session.get_outputs())
    where = "cpu" if device == "cpu" else "cuda"
    return OnnxruntimeGraph(session, GraphDescription("onnxruntime", where, tuple(inputs), outputs))


def has_cuda() -> bool:
    """Whether onnxruntime finds a GPU for its CUDA provider; the list of providers does not say.

    Raises:
        MissingDependencyError: onnxruntime is absent or broken.
    """
    onnxruntime = _import()
    _load_cuda(onnxruntime)
    if not hasattr(onnxruntime, "get_ep_devices"):  # before 1.23
        return False
    gpu = onnxruntime.OrtHardwareDeviceType.GPU
    return any(
        found.ep_name == _CUDA and found.device.type == gpu
        for found in onnxruntime.get_ep_devices()
    )


def _import() -> Any:
    """The package.

    Raises:
        MissingDependencyError: it is not installed, or not whole.
    """
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingDependencyError(
            f"onnxruntime cannot be imported ({one_line(error)}): pip install 'wsss[cpu]', or "
            "'wsss[gpu]' for an NVIDIA GPU"
        ) from error
    if not hasattr(onnxruntime, "get_available_providers"):
        # onnxruntime and onnxruntime-gpu share a folder: removing one takes files of the other.
        raise MissingDependencyError(
            "onnxruntime is installed in part, as after uninstalling one of onnxruntime and "
            "onnxruntime-gpu: uninstall both, then pip install --force-reinstall 'wsss[cpu]' or "
            "'wsss[gpu]'"
        )
    return onnxruntime


def _load_cuda(onnxruntime: Any) -> str:
    """Load the libraries of CUDA from where pip installs them; what is amiss, or nothing."""
    if not hasattr(onnxruntime, "preload_dlls"):  # before 1.21
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        onnxruntime.preload_dlls()
    lines = printed.getvalue().strip().splitlines()
    for line in lines:
        _log.debug("onnxruntime: %s", line)
    return lines[0] if lines else ""


def _session_on_gpu(onnxruntime: Any, path: Path, wanted: str, threads: int | None) -> Any:
    """A session with this provider.

    Raises:
        MissingDependencyError: onnxruntime gives another one, or none.
        ArtifactError: the file cannot run, not even on a CPU.
    """
    complaint = _load_cuda(onnxruntime)
    ranked = [_TENSORRT, _CUDA, _CPU] if wanted == _TENSORRT else [wanted, _CPU]
    # What fails to load is printed by a logger of the whole process. It has no getter.
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        session = _session(onnxruntime, path, ranked, threads)
        obtained = session.get_providers()[0]
    except ArtifactError as error:
        _session(onnxruntime, path, [_CPU], threads)  # is it the file?
        obtained, complaint = "none", one_line(error.__cause__ or error)
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)
    if obtained == wanted:
        return session
    needs = "CUDA and cuDNN" if wanted == _CUDA else "CUDA, cuDNN and TensorRT"
    raise MissingDependencyError(
        f"onnxruntime was asked for {wanted} and gave {obtained}"
        + (f" ({complaint})" if complaint else "")
        + ": uninstall onnxruntime, then pip install 'wsss[gpu]', on a machine with an NVIDIA GPU, "
        f"{needs}; or choose the device cpu"
    )


def _session(onnxruntime: Any, path: Path, ranked: list[str], threads: int | None) -> Any:
    """A session with the first of these providers that it gets.

    Raises:
        ArtifactError: it cannot open the file, or a provider stops it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    # By its name a file could claim to be of onnxruntime's own format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if threads is not None:
        options.intra_op_num_threads = threads
    available = onnxruntime.get_available_providers()
    providers = [(name, _OPTIONS.get(name, {})) for name in ranked if name in available]
    try:
        return onnxruntime.InferenceSession(
            str(path),
            options,
            providers=providers,
            enable_fallback=0,
            read_config_from_model=0,  # a file does not choose how it is run
        )
    except Exception as error:  # its exceptions share no base class
        raise ArtifactError(
            f"onnxruntime cannot open {path}: {one_line(error)}; export it again"
        ) from error


def _spec(value: Any, path: Path, is_optional: bool = False) -> TensorSpec:
    if value.type not in _DTYPES:
        raise ArtifactError(
            f"{path}: `{value.name}` is a {value.type}, expected a tensor of numbers"
        )
    shape = axis_sizes(value.name, value.shape)
    return TensorSpec(value.name, _DTYPES[value.type], shape, is_optional)
