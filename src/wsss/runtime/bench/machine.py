"""The machine a benchmark ran on, with its matrix speed and memory bandwidth measured now."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .timing import median_seconds

_SIDE = 1536
_COPY_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Machine:
    """What the figures of a run depend on.

    Attributes:
        gflops: float32 matrix product of torch, 10^9 operations a second.
        gigabytes_per_second: reading and writing together, of a copy beyond all caches.
    """

    processor: str
    cores: int
    threads: int
    load: float
    torch: str
    device: str
    gflops: float
    gigabytes_per_second: float


def measure_machine(device: torch.device) -> Machine:
    """Describe this machine; takes about a second."""
    matrix = torch.rand(_SIDE, _SIDE, device=device)
    product = torch.empty_like(matrix)
    source = torch.zeros(_COPY_BYTES // 4, device=device)
    target = torch.zeros_like(source)
    seconds = median_seconds(
        {
            "product": lambda: torch.mm(matrix, matrix, out=product),
            "copy": lambda: target.copy_(source),
        },
        rounds=5,
        synchronise=synchroniser(device),
    )
    return Machine(
        processor=_processor(device),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 2),
        torch=torch.__version__,
        device=device.type,
        gflops=round(2 * _SIDE**3 / seconds["product"] / 1e9, 1),
        gigabytes_per_second=round(2 * _COPY_BYTES / seconds["copy"] / 1e9, 2),
    )


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def synchroniser(device: torch.device) -> Callable[[], None]:
    """A function that waits for the device; it does nothing on a CPU."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return wait
