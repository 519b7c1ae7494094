"""The few things a training needs to know about its fellow processes under `torchrun`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import ConfigError

T = TypeVar("T")


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group that `torchrun` announces in the environment; nothing to do without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)  # collectives without tensors use the current device
    dist.init_process_group(backend, timeout=timedelta(hours=6))
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Index of this process; 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 where this one is alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes the shared files."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_processes(values: Tensor) -> Tensor:
    """Element-wise sum of a small tensor over all processes; carries no gradient."""
    values = values.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


class _SumWithGradient(torch.autograd.Function):
    """All processes depend on the sum, so the gradients of all of them flow back to each."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def sum_with_gradient(values: Tensor) -> Tensor:
    """Element-wise sum over all processes, through which gradients flow.

    For a loss that is itself summed over the processes, as `loop` does.
    """
    if not dist.is_initialized():
        return values
    total: Tensor = _SumWithGradient.apply(values)  # type: ignore[no-untyped-call]
    return total


def own_share(items: Sequence[T]) -> list[T]:
    """Every world_size-th item, starting at this process's rank."""
    return list(items[rank() :: world_size()])


def own_rows(batch_size: int, group_size: int = 1) -> slice:
    """Rows of the effective batch that this process computes.

    Args:
        group_size: so many rows, one after the other, stay together.

    Raises:
        ConfigError: the batch cannot be divided evenly.
    """
    if batch_size % (world_size() * group_size):
        groups = f" in groups of {group_size}" if group_size > 1 else ""
        raise ConfigError(
            f"a batch of {batch_size} images{groups} cannot be shared by {world_size()} processes: "
            f"choose a multiple of {world_size() * group_size}"
        )
    size = batch_size // world_size()
    return slice(rank() * size, (rank() + 1) * size)


def is_main_environment() -> bool:
    """Whether `torchrun` started this process as the first; also valid outside of the group."""
    return os.environ.get("RANK", "0") == "0"
