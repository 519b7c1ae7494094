"""Exported graphs as forms of a benchmark: their names, opening them, and their stages.

onnxruntime's own profiler tells where the time goes. Node names, given by
`export/graphs/models.py`, tell the parts of a graph apart; onnxruntime keeps the names that matter
when it fuses nodes.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..runtime.backends.contract import Array, OpenGraph
from ..runtime.backends.registry import open_graph
from .stages import (
    AFFINITY,
    AFFINITY_NETWORK,
    CAM_NETWORK,
    CLASSIFIER,
    LABEL,
    MERGE,
    OTHER,
    RESIZE,
    SEGMENTER,
    WALK,
    Timing,
)

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


@dataclass(frozen=True)
class GraphProfile:
    """One run of a graph.

    Attributes:
        shares: of each stage in the time of the run; `other` is what has no name of ours, and what
            onnxruntime spends between nodes. They sum to 1.
        operations: of the convolutions, by stage; a multiply-add counts as two.
    """

    shares: dict[str, float]
    operations: dict[str, float]


def divided(timing: Timing[Result], profile: GraphProfile, device: torch.device) -> Timing[Result]:
    """A timing with the graph's stage divided by onnxruntime's profiler.

    On a GPU the profiler sees how long kernels take to start, not to run, so it stays whole.
    """
    if device.type != "cpu":
        return timing
    return timing.with_parts(GRAPH, profile.shares)


_NETWORKS = {
    "cam": CAM_NETWORK,
    "classifier": CLASSIFIER,
    "segmenter": SEGMENTER,
}
_PREFIXES = (
    ("cam/scale_", RESIZE),
    ("cam/", MERGE),
    ("classifier/", RESIZE),
    ("affinity/pairs/", AFFINITY),
    ("affinity/paths/", AFFINITY),
    ("refine/walk/", WALK),
    ("refine/", LABEL),
    ("segmenter/scale_", RESIZE),
    ("segmenter/", LABEL),
)
_ENDING = "_kernel_time"
_CONVERTED = "InsertedPrecisionFreeCast_"
"""What onnxruntime puts before nodes that it computes in float32 instead of float16."""
_FATAL = 4


def stage_of(node: str) -> str:
    """The stage that a node of an exported graph belongs to, by its name."""
    node = node.removeprefix(_CONVERTED)
    prefix = node.partition("/")[0]
    if "/network/" in node:  # that of affinities has the name of its stage
        return _NETWORKS.get(prefix, AFFINITY_NETWORK)
    around = RESIZE if "/" in node and prefix.islower() else OTHER  # of affinities, likewise
    return next((stage for start, stage in _PREFIXES if node.startswith(start)), around)


def profile_graph(
    path: Path, inputs: Sequence[Mapping[str, Array]], *, threads: int
) -> GraphProfile:
    """Mean over the inputs, on the CPU, each behind a warm-up with itself."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        for feed in inputs:
            session.run(None, dict(feed))
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return read_profile(events)


def read_profile(events: Sequence[Mapping[str, Any]]) -> GraphProfile:
    """Shares over every second run, the first of each pair being a warm-up."""
    runs = [event for event in events if event["name"] == "model_run"]
    runs = sorted(runs, key=lambda event: event["ts"])[1::2]
    nodes = [event for event in events if event["name"].endswith(_ENDING)]
    seconds: dict[str, float] = {}
    operations: dict[str, float] = {}
    for run in runs:
        for node in _outermost(nodes, run):
            stage = stage_of(node["name"].removesuffix(_ENDING))
            seconds[stage] = seconds.get(stage, 0.0) + node["dur"]
            operations[stage] = operations.get(stage, 0.0) + _operations(node["args"])
    whole = sum(run["dur"] for run in runs)
    rest = whole - sum(seconds.values())
    seconds[OTHER] = seconds.get(OTHER, 0.0) + rest
    return GraphProfile(
        {stage: value / whole for stage, value in seconds.items()},
        {stage: value / len(runs) for stage, value in operations.items()},
    )


def _outermost(
    nodes: Sequence[Mapping[str, Any]], run: Mapping[str, Any]
) -> Iterator[Mapping[str, Any]]:
    """Nodes of a run; those inside of a loop are part of its time and left out."""
    end = run["ts"]
    last = run["ts"] + run["dur"]
    inside = [node for node in nodes if run["ts"] <= node["ts"] <= last]
    for node in sorted(inside, key=lambda node: (node["ts"], -node["dur"])):
        if node["ts"] >= end:
            yield node
            end = node["ts"] + node["dur"]


def _operations(details: Mapping[str, Any]) -> float:
    """Of a convolution; 0 of anything else."""
    if "Conv" not in details.get("op_name", ""):
        return 0.0
    # Scales and zero points of quantised convolutions have fewer axes.
    maps = [shape for shape in _shapes(details["input_type_shape"]) if len(shape) == 4]
    results = _shapes(details["output_type_shape"])
    if len(maps) < 2 or not results:
        return 0.0
    return 2.0 * math.prod(results[0]) * math.prod(maps[1][1:])


def _shapes(listed: Sequence[Mapping[str, Sequence[int]]]) -> list[Sequence[int]]:
    return [shape for entry in listed for shape in entry.values()]
