"""Affinities from features as part of an ONNX graph, and which pairs of cells exist in a grid.

Sizes are known only when the graph runs, so the rules of `pairs.py` become operators on the shape.
"""

import math

import numpy as np
import onnx
from onnx import TensorProto

from ...errors import ConfigError
from ...runtime.refine.boundary_affinity import SINGLE_CELL, path_steps
from ...runtime.refine.pairs import Borders, PairOffsets
from .builder import Builder


def add_affinity(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    *,
    features: str,
    affinity: str,
    prefix: str = "affinity/",
    radius: int = 5,
    beta: float = 8.0,
    borders: Borders = "full",
) -> None:
    """Append `affinity_from_features` to a graph: tensors `features` -> `affinity`.

    Args:
        nodes, constants: of the graph, extended in place.
        features: name of (batch, channels, height, width) float32.
        affinity: name to give to the result, (batch, K, height, width) float32.
        prefix: of all other new names; unique in the graph.
        radius, beta, borders: as in `walk_model`.

    Raises:
        ConfigError: settings as in `walk_model` do not hold.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise ConfigError(f"`beta` is {beta}, must be a finite number above 0")
    graph, pairs = Builder(nodes, constants, prefix), PairOffsets(radius)
    _, channels, height, width = graph.split(graph("Shape", features), 4)
    exists = pairs_exist(graph, pairs, borders, height, width)
    share = graph("Div", graph.floats(-beta), graph("Cast", channels, to=TensorProto.FLOAT))
    exponents = _pair_sums(graph, features, channels, share, width, pairs)  # (B, h * w, K)
    values = graph("Transpose", graph("Exp", exponents), perm=[0, 2, 1])
    shape = graph("Concat", graph.integers(0, 0), height, width, axis=0)
    values = graph("Reshape", values, shape)
    graph("Where", exists, values, graph.floats(0), output=affinity)


def pairs_exist(
    graph: Builder, pairs: PairOffsets, borders: Borders, height: str, width: str
) -> str:
    """(K, h, w) bool: whether the pair of that plane and from-cell exists."""
    ample = 4 * pairs.radius
    regions = [pairs.from_cells(offset, (ample, ample), borders) for offset in pairs.offsets]
    # A rectangle keeps its distance to the edges of the grid, whatever the size.
    below = [ample - rows.stop for rows, _ in regions]
    left = [columns.start for _, columns in regions]
    right = [ample - columns.stop for _, columns in regions]
    margins = (np.array(values, np.int64).reshape(-1, 1, 1) for values in (below, left, right))
    below_, left_, right_ = (graph.constant(values) for values in margins)
    zero, one = (graph.constant(np.array(value, np.int64)) for value in (0, 1))
    row, column = (graph("Range", zero, graph("Squeeze", n), one) for n in (height, width))
    row = graph("Unsqueeze", row, graph.integers(1))
    rows = graph("Less", graph("Add", row, below_), height)
    from_left = graph("GreaterOrEqual", column, left_)
    from_right = graph("Less", graph("Add", column, right_), width)
    return graph("And", rows, graph("And", from_left, from_right))


def _pair_sums(
    graph: Builder, features: str, channels: str, share: str, width: str, pairs: PairOffsets
) -> str:
    """(B, C, h, w) -> (B, h * w, K), `share` times the sum over channels of |f_i - f_j|; anything
    without a pair.

    Cells in one row, channels last: an offset is a constant shift, a sum runs over neighbours in
    memory. As a product with a column it takes half the time of onnxruntime's ReduceSum.
    """
    reach = pairs.radius - 1
    below, aside = (graph.integers(*numbers) for numbers in zip(*pairs.offsets, strict=True))
    flat = graph("Reshape", features, graph.integers(0, 0, -1))
    cells = graph("Transpose", flat, perm=[0, 2, 1])
    # Offsets reach back by less than `reach`, where the grid is narrower than the radius.
    none, before = graph.integers(0), graph.integers(reach)
    after = graph("Add", graph("Mul", width, before), before)
    padded = graph("Pad", cells, graph("Concat", none, before, none, none, after, none, axis=0))
    starts = graph("Add", graph("Add", graph("Mul", below, width), aside), before)
    num_cells = graph("Shape", cells, start=1, end=2)
    ends = graph.split(graph("Add", starts, num_cells), len(pairs))
    axis = graph.integers(1)
    column = graph("Expand", share, graph("Concat", channels, axis, axis=0))
    sums = []
    for start, end in zip(graph.split(starts, len(pairs)), ends, strict=True):
        partners = graph("Slice", padded, start, end, axis)
        distance = graph("Abs", graph("Sub", cells, partners))
        sums.append(graph("MatMul", distance, column))
    return graph("Concat", *sums, axis=2)


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
