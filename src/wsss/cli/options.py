"""Values that options of several commands take; typer refuses others with exit code 2."""

from typing import Literal

from ..errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
GraphDevice = Literal["auto", "cpu", "cuda", "tensorrt"]
"""tensorrt: TensorRT within onnxruntime."""

SharedMemory = Literal["auto", "on", "off"]

Backend = Literal["auto", "torch", "onnxruntime", "tensorrt", "triton"]
"""The same names as in `runtime/backends/registry.py`, which `--help` has no time to import."""


def one_mode(mode: str | None, former: str | None, alias: str) -> str | None:
    """The value of `--mode`, or of the option that had its meaning before.

    Raises:
        ConfigError: both are given, with different values.
    """
    if mode is not None and former is not None and mode != former:
        raise ConfigError(f"{alias} is the former name of --mode: leave {alias} out")
    return mode or former
