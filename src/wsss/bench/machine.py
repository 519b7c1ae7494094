"""The machine a benchmark ran on, with its matrix speed and memory bandwidth measured now."""

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from .stages import timed_rounds

_SIDE = 1536
_COPY_BYTES = 256 * 2**20
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Of x86 processors, and of ARM's, in /proc/cpuinfo."""


@dataclass(frozen=True)
class Machine:
    """What the figures of a run depend on.

    Attributes:
        onnxruntime: its version, None where it is not installed.
        gflops: float32 matrix product of torch, 10^9 operations a second, the best of 8.
        gflops_bfloat16: likewise; None where the processor has no bfloat16 products.
        gigabytes_per_second: reading and writing together, of a copy beyond all caches.
    """

    processor: str
    cores: int
    threads: int
    load: float
    torch: str
    onnxruntime: str | None
    device: str
    gflops: float
    gflops_bfloat16: float | None
    gigabytes_per_second: float


def measure_machine(device: torch.device) -> Machine:
    """Describe this machine; takes about a second."""
    source = torch.zeros(_COPY_BYTES // 4, device=device)
    target = torch.zeros_like(source)
    functions: dict[str, Callable[[], object]] = {
        "float32": _product(torch.float32, device),
        "copy": lambda: target.copy_(source),
    }
    if has_bfloat16(device):
        functions["bfloat16"] = _product(torch.bfloat16, device)
    rounds = timed_rounds(functions, rounds=8, synchronise=synchroniser(device))
    seconds = {name: min(values) for name, values in rounds.items()}
    speeds = {
        name: round(2 * _SIDE**3 / value / 1e9, 1)
        for name, value in seconds.items()
        if name != "copy"
    }
    return Machine(
        processor=_processor(device),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 2),
        torch=torch.__version__,
        onnxruntime=_onnxruntime_version(),
        device=device.type,
        gflops=speeds["float32"],
        gflops_bfloat16=speeds.get("bfloat16"),
        gigabytes_per_second=round(2 * _COPY_BYTES / seconds["copy"] / 1e9, 2),
    )


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; elsewhere torch emulates it, slowly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    lists = [*_cpuinfo("flags"), *_cpuinfo("Features")]
    words = {word for line in lists for word in line.split()}
    return not _BFLOAT16_FLAGS.isdisjoint(words)


def exact_float32(device: torch.device) -> AbstractContextManager[object]:
    """Inside of it convolutions in float32 are computed in float32; cuDNN takes TF32 by default."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def _product(dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    matrix = torch.rand(_SIDE, _SIDE, device=device).to(dtype)
    product = torch.empty_like(matrix)
    return lambda: torch.mm(matrix, matrix, out=product)


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = _cpuinfo("model name")
    return names[0] if names else platform.processor() or platform.machine()


def _cpuinfo(key: str) -> list[str]:
    """What Linux says of each core under a key; nothing on other systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]


def _onnxruntime_version() -> str | None:
    for package in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return None


def synchroniser(device: torch.device) -> Callable[[], None]:
    """A function that waits for the device; it does nothing on a CPU."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return wait
