"""Which device a process computes on."""

import os

import torch

from ...errors import ConfigError, MissingDependencyError


def choose_device(name: str) -> torch.device:
    """The device of this process.

    Args:
        name: auto, cpu or cuda.

    Raises:
        ConfigError: cuda asked for and not there, or an unknown name.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"unknown device '{name}': choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError(
            "`device` cuda: this torch finds no CUDA device: install a CUDA build of torch, or "
            "use `device` cpu"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
