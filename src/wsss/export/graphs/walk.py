"""The walk as an ONNX graph: one `Loop` of fixed length, for grids, batches and maps of any size.

The grid is cut into square tiles as wide as the pairs reach. Then a step is one small matrix
product a tile: the tile and its 8 neighbours times a band of weights, gathered before the loop.
Source: `propagation.py`. onnxruntime on a CPU takes about a third of the time that one Slice and
Mul an offset takes: twice the operations, but in one pass instead of 69.
"""

from typing import Literal, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...errors import ConfigError
from ...runtime.refine.pairs import Borders, PairOffsets
from ...runtime.refine.random_walk import chebyshev_coefficients
from .builder import IR_VERSION, OPSET, Builder
from .pairs import add_affinity, pairs_exist
from .walk_tiles import Tiles, double_transition

__all__ = ["add_affinity", "add_walk", "walk_model"]

Source = Literal["affinity", "features"]


def walk_model(
    *,
    radius: int = 5,
    steps: int = 256,
    tolerance: float = 1e-4,
    source: Source = "affinity",
    beta: float = 8.0,
    borders: Borders = "full",
) -> onnx.ModelProto:
    """Model of `propagate`, alone or behind `affinity_from_features`; float32 throughout.

    Inputs: `scores` (batch, maps, height, width) and, by `source`, `affinity` (batch, K, height,
    width) or `features` (batch, channels, height, width), all finite. Output: `walked`, like
    `scores`. Every axis but K is dynamic, from 1. Nothing is checked while the graph runs.

    Args:
        radius: of the pairs, in grid cells; sets K. The file takes 23 kB for 5, 250 kB for 10.
        steps: >= 0; the published walk takes 256.
        tolerance: error allowed to the polynomial, see `propagate`.
        source: what the second input holds.
        beta: exponent > 0 of the transition matrix; only for features, an affinity contains it.
        borders: which pairs exist; others have affinity 0, whatever the input holds there.

    Raises:
        ConfigError: settings as above do not hold.
    """
    if source not in get_args(Source):
        choices = ", ".join(get_args(Source))
        raise ConfigError(f"unknown `source` '{source}': choose one of {choices}")
    planes = len(PairOffsets(radius)) if source == "affinity" else "channels"
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    if source == "features":
        add_affinity(
            nodes,
            constants,
            features="features",
            affinity="affinity",
            radius=radius,
            beta=beta,
            borders=borders,
        )
    add_walk(
        nodes,
        constants,
        scores="scores",
        affinity="affinity",
        walked="walked",
        radius=radius,
        steps=steps,
        tolerance=tolerance,
        borders=borders,
    )
    inputs = [_grid("scores", "maps"), _grid(source, planes)]
    graph = helper.make_graph(nodes, "walk", inputs, [_grid("walked", "maps")], constants)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="wsss"
    )


def add_walk(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    *,
    scores: str,
    affinity: str,
    walked: str,
    prefix: str = "walk/",
    radius: int = 5,
    steps: int = 256,
    tolerance: float = 1e-4,
    borders: Borders = "full",
) -> None:
    """Append the walk to a graph: tensors `scores`, `affinity` -> `walked`.

    Args:
        nodes: of the graph, extended in place.
        constants: initializers of the graph, extended in place.
        scores: name of (batch, maps, height, width) float32.
        affinity: name of (batch, K, height, width) float32.
        walked: name to give to the result, like the scores.
        prefix: of all other new names; unique in the graph.
        radius, steps, tolerance, borders: as in `walk_model`.

    Raises:
        ConfigError: settings as in `walk_model` do not hold.
    """
    coefficients = chebyshev_coefficients(steps, tolerance, radius=radius)
    graph, pairs = Builder(nodes, constants, prefix), PairOffsets(radius)
    pairs.from_cells(pairs.offsets[0], (1, 1), borders)  # refuses unknown borders
    if len(coefficients) == 1:  # no step, or a tolerance that needs none
        graph("Identity", scores, output=walked)
        return
    batch, maps, height, width = graph.split(graph("Shape", scores), 4)
    tiles = Tiles(graph, radius, batch, height, width)
    exists = pairs_exist(graph, pairs, borders, height, width)
    # Where, not Mul: values without a pair may be anything, NaN too.
    planes = tiles.cut(graph("Where", exists, affinity, graph.floats(0)), len(pairs), spare=1)
    weights = double_transition(graph, tiles, planes, pairs)
    state = _polynomial(graph, tiles, tiles.cut(scores, maps), weights, coefficients)
    tiles.join(state, maps, output=walked)


def _polynomial(
    graph: Builder, tiles: Tiles, state: str, weights: str, coefficients: tuple[float, ...]
) -> str:
    """(B, T, n, S) scores -> sum of coefficient j times s_j, where s_{j+1} = 2 T s_j - s_{j-1}.

    Every second coefficient is 0, so the loop takes two steps and adds once.
    """
    parity = (len(coefficients) - 1) % 2
    kept = graph.floats(*coefficients[parity::2])
    first = graph("Gather", kept, graph.integers(0))
    double = _step(graph, tiles, state, weights)
    current, previous = state, graph("Mul", double, graph.floats(0.5))
    # s_{-1} = s_1 = T s_0, so the same recurrence starts from (s_0, s_{-1}) or from (s_1, s_0).
    if parity:
        current, previous = previous, current
    result = graph("Mul", current, first)
    trips = len(coefficients[parity::2]) - 1
    if trips == 0:
        return result
    later = graph("Slice", kept, graph.integers(1), graph.integers(trips + 1))
    body = _loop_body(graph, tiles, weights, later)
    count = graph.constant(np.array(trips, np.int64))
    outputs = [f"{graph.prefix}{name}" for name in ("last", "last_but_one", "result")]
    inputs = [count, "", current, previous, result]
    graph.nodes.append(helper.make_node("Loop", inputs, outputs, f"{graph.prefix}loop", body=body))
    return outputs[-1]


def _loop_body(outer: Builder, tiles: Tiles, weights: str, later: str) -> onnx.GraphProto:
    """(s_j, s_{j-1}, sum) -> (s_{j+2}, s_{j+1}, sum with s_{j+2}); reads tensors of the graph."""
    graph = Builder([], outer.constants, f"{outer.prefix}loop/")
    names = ("trip", "go", "current", "previous", "result")
    trip, go, current, previous, result = (graph.prefix + name for name in names)
    odd = graph("Sub", _step(graph, tiles, current, weights), previous)
    even = graph("Sub", _step(graph, tiles, odd, weights), current)
    term = graph("Mul", even, graph("Gather", later, trip))
    total, go_on = graph("Add", result, term), graph("Identity", go)
    count = helper.make_tensor_value_info(trip, TensorProto.INT64, [])
    before, after = (helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in (go, go_on))
    inputs = [count, before, *map(_tiled, (current, previous, result))]
    outputs = [after, *map(_tiled, (even, odd, total))]
    return helper.make_graph(graph.nodes, f"{outer.prefix}body", inputs, outputs)


def _step(graph: Builder, tiles: Tiles, state: str, weights: str) -> str:
    """2 T times the state: (B, T, n, 9 * S) @ (B, T, 9 * S, S)."""
    return graph("MatMul", tiles.gather(graph, state), weights)


def _tiled(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4)


def _grid(name: str, planes: str | int) -> onnx.ValueInfoProto:
    shape = ["batch", planes, "height", "width"]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
