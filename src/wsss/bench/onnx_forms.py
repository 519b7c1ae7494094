"""Exported graphs as forms of a benchmark: their names, opening them, and their stages."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from ..runtime.backends.contract import OpenGraph
from ..runtime.backends.registry import open_graph
from .onnx_profile import GraphProfile
from .stages import Timing

GRAPH = "graph"
"""The stage of a whole graph, until the profiler divides it."""
FORMS: dict[str, str] = {
    "fp32": "onnxruntime",
    "fp16": "onnxruntime fp16",
    "int8": "onnxruntime int8",
}
"""Rows by precision."""

Result = TypeVar("Result")


@contextmanager
def opened(
    files: Mapping[str, Path], threads: int, device: torch.device
) -> Iterator[dict[str, OpenGraph]]:
    """Graphs in onnxruntime, by the names of the files."""
    where = "cuda" if device.type == "cuda" else "cpu"
    with ExitStack() as stack:
        graphs = {}
        for name, path in files.items():
            graph = open_graph(path, backend="onnxruntime", device=where, threads=threads)
            graphs[name] = stack.enter_context(closing(graph))
        yield graphs


def divided(timing: Timing[Result], profile: GraphProfile, device: torch.device) -> Timing[Result]:
    """A timing with the graph's stage divided by onnxruntime's profiler.

    On a GPU the profiler sees how long kernels take to start, not to run, so it stays whole.
    """
    if device.type != "cpu":
        return timing
    return timing.with_parts(GRAPH, profile.shares)
