"""Networks are traced for export once a session: each takes seconds, and many tests do it."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest
from torch import nn

Trace = Callable[[nn.Module, tuple[str, ...]], Any]


@contextmanager
def traced_once() -> Iterator[None]:
    """Inside, a network that equals an earlier one gets the graph of that one."""
    if find_spec("onnx") is None:
        yield
        return
    from wsss.export import trace as networks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "_trace", _remembering(networks._trace))
        yield


def _remembering(trace: Trace) -> Trace:
    known: dict[str, Any] = {}

    def remembering(module: nn.Module, names: tuple[str, ...]) -> Any:
        key = _digest(module, names)
        if key not in known:
            known[key] = trace(module, names)
        return known[key]

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
