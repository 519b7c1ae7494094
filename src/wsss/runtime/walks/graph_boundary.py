"""Affinities from boundaries as part of an ONNX graph: `affinity_from_boundary` in operators."""

import math

import onnx

from ...errors import ConfigError
from ..boundary_affinity import SINGLE_CELL, path_steps
from ..pairs import Borders, PairOffsets
from .graph_affinity import pairs_exist
from .graph_builder import Builder


def add_boundary_affinity(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    *,
    boundary: str,
    affinity: str,
    prefix: str = "affinity/",
    radius: int = 5,
    beta: float = 10.0,
    borders: Borders = "full",
) -> None:
    """Append `affinity_from_boundary` to a graph: tensors `boundary` -> `affinity`.

    Args:
        nodes, constants: of the graph, extended in place.
        boundary: name of (batch, 1, height, width) float32 in [0, 1].
        affinity: name to give to the result, (batch, K, height, width) float32.
        prefix: of all other new names; unique in the graph.
        radius, beta, borders: as in `affinity_from_boundary`.

    Raises:
        ConfigError: settings as above do not hold.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise ConfigError(f"`beta` is {beta}, must be a finite number above 0")
    graph, pairs = Builder(nodes, constants, prefix), PairOffsets(radius)
    _, _, height, width = graph.split(graph("Shape", boundary), 4)
    openness = graph("Pow", graph("Sub", graph.floats(1), boundary), graph.floats(beta))
    planes = graph("Concat", *_path_minima(graph, openness, width, pairs), axis=1)
    shape = graph("Concat", graph.integers(0, 0), height, width, axis=0)
    exists = pairs_exist(graph, pairs, borders, height, width)
    graph("Where", exists, graph("Reshape", planes, shape), graph.floats(0), output=affinity)


def _path_minima(graph: Builder, openness: str, width: str, pairs: PairOffsets) -> list[str]:
    """(B, 1, h, w) -> (B, 1, h * w) of each offset: the least on its path, anything without a pair.

    Cells in one row, so that a shift is one number; a path is the least of shorter ones.
    """
    reach = pairs.radius - 1
    none, before = graph.integers(0), graph.integers(reach)
    after = graph("Add", graph("Mul", width, before), before)
    margins = graph("Concat", none, none, before, none, none, after, axis=0)
    cells = graph("Reshape", openness, graph.integers(0, 0, -1))
    count = graph("Shape", cells, start=2)
    axis = graph.integers(2)
    padded = {SINGLE_CELL: graph("Pad", cells, margins)}
    minima: dict[int, str] = {}
    for plane, parts in path_steps(pairs.radius):
        shifted = []
        for part, (dy, dx) in parts:
            if part not in padded:
                padded[part] = graph("Pad", minima[part], margins)
            below = graph("Mul", width, graph.integers(dy))
            start = graph("Add", below, graph.integers(dx + reach))
            end = graph("Add", start, count)
            shifted.append(graph("Slice", padded[part], start, end, axis))
        minima[plane] = graph("Min", *shifted)
    return [minima[plane] for plane in range(len(pairs))]
