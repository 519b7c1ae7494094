"""Checkpoints: safetensors with a JSON header, read without executing anything.

`weights.safetensors` holds a trained network and what it takes to use it; `resume.safetensors`
holds a training in the middle: network, optimiser state and step.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ...errors import ArtifactError, one_line, short_repr
from ...runtime.io.files import atomic_write_bytes

FORMAT_VERSION = 2
_READ = (1, 2)


def save_checkpoint(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a JSON-compatible header atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"wsss": json.dumps({"format_version": FORMAT_VERSION, **header}, sort_keys=True)}
    atomic_write_bytes(path, save(plain, metadata=metadata))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Raises:
        ArtifactError: missing, damaged, foreign, of another format version, or holding NaN.
    """
    if not path.is_file():  # a pipe would block for ever
        raise ArtifactError(f"checkpoint '{path}' cannot be read: it does not exist or is no file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"checkpoint '{path}' cannot be read: {one_line(error)}") from None
    try:
        header = dict(json.loads(metadata["wsss"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ArtifactError(
            f"checkpoint '{path}' was not written by wsss: give foreign weights as `weights_path`"
        ) from None
    if header.get("format_version") not in _READ:
        raise ArtifactError(
            f"checkpoint '{path}' has format version {short_repr(header.get('format_version'))}, "
            f"this program reads {_READ[0]} to {FORMAT_VERSION}: use the wsss that wrote it"
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ArtifactError(
                f"checkpoint '{path}': tensor {short_repr(name)} holds NaN or infinity"
            )
    return tensors, header


def load_into(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Put tensors into a network of exactly these names and shapes.

    Raises:
        ArtifactError: names the first tensor that is missing, left over or of another shape.
    """
    expected = network.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise ArtifactError(f"checkpoint '{path}' lacks tensor {short_repr(name)}")
        if name not in expected:
            raise ArtifactError(
                f"checkpoint '{path}' has tensor {short_repr(name)}, which no layer takes"
            )
        if expected[name].shape != tensors[name].shape:
            raise ArtifactError(
                f"checkpoint '{path}': tensor {short_repr(name)} is {tuple(tensors[name].shape)}, "
                f"expected {tuple(expected[name].shape)}"
            )
    network.load_state_dict(tensors)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state as named tensors, keyed by the position of the parameter."""
    packed = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                packed[f"optimizer/{index}/{key}"] = torch.as_tensor(value)
    return packed


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `pack_optimizer` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        _, index, key = name.split("/")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
