"""A TensorRT plan behind the contract of `contract.py`; torch lends device memory and a stream.

Written from the documented API of TensorRT 11, which 10.12 and later share. Every call is checked
against the real Python bindings, see `tests/export/test_tensorrt_contract.py`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import (
    ArtifactError,
    DataError,
    MissingDependencyError,
    ShapeError,
    WsssError,
    one_line,
)
from ..io.files import read_file
from .contract import (
    Array,
    GraphDescription,
    OpenGraph,
    TensorSpec,
    axis_sizes,
    check_inputs,
    closed,
    run_failure,
)

if TYPE_CHECKING:
    import torch

OLDEST = (10, 12)
"""TensorRT from which networks can be strongly typed; in 11 they always are."""
DTYPES = {
    "UINT8": "uint8",
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""TensorRT's name of a type -> numpy's and torch's, which are the same. No others are passed."""
_MAX_BYTES = 4 << 30
_LOG = logging.getLogger(__name__)

Shape = tuple[int, ...]


def open_plan(
    path: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    allow_host_code: bool = False,
) -> OpenGraph:
    """Open a plan on the current CUDA device.

    Args:
        path: a file that `export.tensorrt.build_engine` or trtexec wrote, on a GPU and with a
            TensorRT that fit this machine.
        device, threads: ignored; an engine runs on the current CUDA device.
        allow_host_code: let the plan run code of its own on the CPU. Version-compatible plans need
            it. A plan is a program: open those that you trust, and these all the more.

    Raises:
        MissingDependencyError: TensorRT, torch or a CUDA device is missing.
        DataError: no such file.
        ArtifactError: built for another GPU or TensorRT version, or not a plan that can run here.
    """
    return TensorRTGraph(path, allow_host_code=allow_host_code)


class TensorRTGraph:
    """An `OpenGraph`. Calls from several threads take turns: one context serves one at a time."""

    def __init__(self, path: Path, *, allow_host_code: bool) -> None:
        trt = import_tensorrt()
        torch = import_cuda_torch("the tensorrt backend takes device memory from it")
        plan = read_file(path, max_bytes=_MAX_BYTES)
        self._lock = Lock()
        self._device = torch.device("cuda", torch.cuda.current_device())
        # The default stream would make TensorRT synchronise the whole device.
        self._stream = torch.cuda.Stream(self._device)
        self._log = message_log(trt, _LOG.warning)
        runtime = started(trt.Runtime, self._log)
        runtime.engine_host_code_allowed = allow_host_code
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ArtifactError(_refusal(path, version_of(trt), allow_host_code, self._log))
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        specs = {name: _spec(trt, engine, name) for name in names}
        inputs = tuple(specs[name] for name in names if modes[name] == trt.TensorIOMode.INPUT)
        outputs = tuple(specs[name] for name in names if modes[name] == trt.TensorIOMode.OUTPUT)
        self._description = GraphDescription("tensorrt", "cuda", inputs, outputs)
        self._ranges = {spec.name: _range(engine, spec.name) for spec in inputs}
        context = engine.create_execution_context()
        if context is None:
            raise WsssError(
                f"plan '{path.name}' does not fit into the GPU's free memory: free some, or build "
                f"with a smaller profile{self._log.take()}"
            )
        self._runtime, self._engine, self._context = runtime, engine, context

    def describe(self) -> GraphDescription:
        """Inputs, outputs and where it runs.

        A plan forgets the names of dynamic axes; `image_0` is axis 0 of `image`. An input with a
        default is a constant to TensorRT, so a plan does not have it.
        """
        return self._description

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Compute outputs, all of them by default.

        Raises:
            ShapeError: also sizes outside of the profile that the plan was built with.
            DataError: see `check_inputs`; or TensorRT fails on these inputs.
            WsssError: a plan that this backend cannot run on any.
        """
        check_inputs(self._description, inputs, outputs)
        for name, array in inputs.items():
            self._check_range(name, array.shape)
        wanted = [spec.name for spec in self._description.outputs] if outputs is None else outputs
        with self._lock:
            if self._context is None:
                raise closed()
            try:
                computed = self._execute(inputs)
            except RuntimeError as error:  # torch's, as a rule for want of memory
                raise run_failure("the plan", error) from error
        return {name: computed[name] for name in wanted}

    def close(self) -> None:
        """Give device memory back, after a running call."""
        with self._lock:
            # In this order: each one uses the next.
            self._context = None
            self._engine = None
            self._runtime = None

    def _check_range(self, name: str, shape: Shape) -> None:
        smallest, largest = self._ranges[name]
        if not all(
            low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
        ):
            raise ShapeError(
                f"input `{name}` is {shape}, this plan takes {smallest} to {largest}: resize it, "
                "or build a plan with a wider profile"
            )

    def _execute(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            # Kept to the end: TensorRT knows addresses only.
            kept = [self._upload(name, array) for name, array in inputs.items()]
            self._infer_shapes(inputs)
            results = {}
            for spec in self._description.outputs:
                results[spec.name] = self._allocate(spec)
                self._place(spec.name, results[spec.name])
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise DataError(f"TensorRT failed to run the plan{self._log.take()}")
            computed = {name: tensor.cpu().numpy() for name, tensor in results.items()}
            self._stream.synchronize()
        del kept
        return computed

    def _upload(self, name: str, array: Array) -> "tuple[torch.Tensor, torch.Tensor]":
        """Start the copy to the device, through memory that it can read directly."""
        import torch

        dtype = getattr(torch, str(array.dtype))
        pinned = torch.empty(array.shape, dtype=dtype, pin_memory=True)
        np.copyto(pinned.numpy(), array)
        tensor = torch.empty(array.shape, dtype=dtype, device=self._device)
        tensor.copy_(pinned, non_blocking=True)
        if not self._context.set_input_shape(name, tuple(array.shape)):
            raise ShapeError(f"input `{name}`: TensorRT refuses {array.shape}{self._log.take()}")
        self._place(name, tensor)
        return pinned, tensor

    def _place(self, name: str, tensor: "torch.Tensor") -> None:
        if not self._context.set_tensor_address(name, tensor.data_ptr()):
            raise WsssError(f"TensorRT refuses the memory of `{name}`{self._log.take()}")

    def _infer_shapes(self, inputs: Mapping[str, Array]) -> None:
        sizes = ", ".join(f"`{name}` {array.shape}" for name, array in inputs.items())
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            raise ShapeError(
                f"the plan cannot take {sizes} together: {one_line(error)}{self._log.take()}"
            ) from None
        if missing:
            raise DataError(f"the plan lacks {', '.join(missing)} beside {sizes}: build it again")

    def _allocate(self, spec: TensorSpec) -> "torch.Tensor":
        import torch

        shape = tuple(self._context.get_tensor_shape(spec.name))
        if any(size < 0 for size in shape):
            raise WsssError(
                f"output `{spec.name}` is {shape}: its size depends on values, which this backend "
                "does not support; use the onnxruntime backend for this graph"
            )
        return torch.empty(shape, dtype=getattr(torch, spec.dtype), device=self._device)


def _spec(trt: Any, engine: Any, name: str) -> TensorSpec:
    kind = engine.get_tensor_dtype(name)
    dtypes = {getattr(trt.DataType, theirs): ours for theirs, ours in DTYPES.items()}
    if kind not in dtypes:
        raise ArtifactError(f"tensor `{name}` is {kind}, this backend takes {', '.join(DTYPES)}")
    if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
        raise ArtifactError(
            f"tensor `{name}` decides over shapes, which this backend does not support: export "
            "the graph so that it computes sizes from its images"
        )
    sizes = (size if size >= 0 else None for size in engine.get_tensor_shape(name))
    return TensorSpec(name, dtypes[kind], axis_sizes(name, sizes))


def _range(engine: Any, name: str) -> tuple[Shape, Shape]:
    """Smallest and largest shape in the profile; we write one."""
    smallest, _, largest = engine.get_tensor_profile_shape(name, 0)
    return tuple(smallest), tuple(largest)


def _refusal(path: Path, version: str, allow_host_code: bool, log: Any) -> str:
    message = (
        f"plan '{path.name}' cannot be opened: built for another GPU or TensorRT version than this "
        f"one ({version}): build it again on this machine"
    )
    if not allow_host_code:
        message += "; if it is version-compatible and you trust it, allow its host code"
    return message + str(log.take())


def import_tensorrt() -> Any:
    """The module `tensorrt`.

    Raises:
        MissingDependencyError: it is absent, cannot be loaded or is older than `OLDEST`.
    """
    try:
        import tensorrt as trt
    except ModuleNotFoundError as error:
        if error.name != "tensorrt":
            raise
        raise MissingDependencyError(
            "TensorRT is not installed: pip install 'wsss[tensorrt]', or use the onnxruntime "
            "backend"
        ) from None
    except ImportError as error:  # its shared libraries
        raise MissingDependencyError(
            f"TensorRT cannot be loaded: {one_line(error)}: pip install --force-reinstall "
            "'wsss[tensorrt]'"
        ) from None
    found = tuple(int(part) for part in trt.__version__.split(".")[:2])
    if found < OLDEST:
        raise MissingDependencyError(
            f"TensorRT {trt.__version__} is too old, expected {'.'.join(map(str, OLDEST))} or "
            "later: pip install --upgrade 'wsss[tensorrt]'"
        )
    return trt


def import_cuda_torch(reason: str) -> Any:
    """The module `torch`, with a device.

    Args:
        reason: what it is needed for.

    Raises:
        MissingDependencyError: torch is absent or finds no CUDA device.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError(
            f"torch is not installed, {reason}: pip install 'wsss[tensorrt]'"
        ) from None
    if not torch.cuda.is_available():
        raise MissingDependencyError(
            f"torch {torch.__version__} finds no CUDA device, {reason}: install a CUDA build of "
            "torch and a driver, or use the onnxruntime backend"
        )
    return torch


def version_of(trt: Any) -> str:
    """Major, minor and patch, as in names of plans: 11.4.0 of 11.4.0.106."""
    return ".".join(trt.__version__.split(".")[:3])


def started(kind: Callable[[Any], Any], log: Any) -> Any:
    """A `trt.Runtime` or `trt.Builder`.

    Raises:
        WsssError: TensorRT does not start, for want of a driver or a device that it knows.
    """
    try:
        return kind(log)
    except TypeError:  # what the bindings make of a null pointer
        raise WsssError(
            "TensorRT does not start: check that nvidia-smi shows a GPU, and that its driver is "
            f"new enough for this TensorRT{log.take()}"
        ) from None


def message_log(trt: Any, tell: Callable[[str], object]) -> Any:
    """A `trt.ILogger` that keeps errors for the exception that follows, and tells warnings.

    Its method `take` returns the errors so far as `; TensorRT: ...` and forgets them.
    """

    class MessageLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 does not accept super()
            self._errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self._errors.append(one_line(msg))
            elif severity == trt.ILogger.WARNING:
                tell(one_line(msg))

        def take(self) -> str:
            errors, self._errors = self._errors, []
            return f"; TensorRT: {' / '.join(errors)}" if errors else ""

    return MessageLog()
