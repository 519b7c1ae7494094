"""Values that options of several commands take; typer refuses others with exit code 2."""

from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
GraphDevice = Literal["auto", "cpu", "cuda", "tensorrt"]
"""tensorrt: TensorRT within onnxruntime."""

SharedMemory = Literal["auto", "on", "off"]

Backend = Literal["auto", "torch", "onnxruntime", "tensorrt", "triton"]
"""The same names as in `runtime/backends/registry.py`, which `--help` has no time to import."""

Way = Literal["segmenter", "labels", "walk", "cam"]
"""Ways in which a run labels; those of `Method.modes` in `training/methods/contract.py`."""
