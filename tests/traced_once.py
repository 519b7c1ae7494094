"""Networks are traced for export once a test run: each takes seconds, and many tests do it."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

Trace = Callable[[nn.Module, tuple[str, ...]], Any]


@contextmanager
def traced_once(folder: Path) -> Iterator[None]:
    """Inside, a network that equals an earlier one gets the graph of that one.

    Args:
        folder: keeps the graphs; several processes may share it.
    """
    if find_spec("onnxscript") is None:
        yield
        return
    from wsss.export.graphs import trace as networks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "_trace", _remembering(networks._trace, folder))
        yield


@contextmanager
def traced_afresh() -> Iterator[None]:
    """Inside, networks are traced again, for tests of the tracing itself."""
    from wsss.export.graphs import trace as networks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "_trace", getattr(networks._trace, "afresh", networks._trace))
        yield


class StoredProgram:
    """A traced program that is read when it is first run: few tests do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def module(self) -> nn.Module:
        return torch.export.load(self.path).module()


def _remembering(trace: Trace, folder: Path) -> Trace:
    def remembering(module: nn.Module, names: tuple[str, ...]) -> Any:
        path = folder / f"{_digest(module, names)}.onnx"
        if not path.exists():
            model, program = trace(module, names)
            own = folder / f"{os.getpid()}"  # two processes may trace the same network at once
            torch.export.save(program, own.with_suffix(".pt2"))
            onnx.save(model, own.with_suffix(".onnx"))
            os.replace(own.with_suffix(".pt2"), path.with_suffix(".pt2"))
            os.replace(own.with_suffix(".onnx"), path)
            return model, program
        return onnx.load(path), StoredProgram(path.with_suffix(".pt2"))

    remembering.afresh = trace  # type: ignore[attr-defined]
    return remembering


def _digest(module: nn.Module, names: tuple[str, ...]) -> str:
    """Of everything that decides the graph: layers, their plain settings, and weights."""
    digest = hashlib.sha256(repr((names, str(module))).encode())
    for part in module.modules():
        plain = (int, float, str, tuple)
        settings = {name: value for name, value in vars(part).items() if isinstance(value, plain)}
        digest.update(repr(sorted(settings.items())).encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
