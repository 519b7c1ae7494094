"""A grid cut into square tiles within an ONNX graph, and the walk's weights between those tiles.

A tile is at least as wide as the pairs reach: its cells have partners in it and its 8 neighbours
only, and their weights form one band, a matrix that takes these 9 tiles to the one in the middle.
"""

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ...runtime.refine.pairs import PairOffsets
from .builder import Builder

_MIN_SIDE = 4
"""Of a tile, in cells: 16 columns fill a vector register, smaller products are all overhead."""
_NEIGHBOURS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
"""Tiles around a tile and itself; only the first 6 hold pairs that lead into it."""
_INWARD = 6


class Tiles:
    """A grid, padded to whole tiles of side x side = S cells; T tiles, row by row.

    Steps from tile to tile may leave the grid on one side and enter it on the other: those cells
    are no pairs, so their weight is 0.
    """

    def __init__(self, graph: Builder, radius: int, batch: str, height: str, width: str) -> None:
        self._graph, self._batch = graph, batch
        self.side = max(_MIN_SIDE, radius - 1)
        self._size = graph("Concat", height, width, axis=0)
        self._length = graph.integers(self.side)
        rounded_up = graph("Add", self._size, graph.integers(self.side - 1))
        self._counts = graph("Div", rounded_up, self._length)
        self._whole = graph("Mul", self._counts, self._length)
        self._rows, self._columns = graph.split(self._counts, 2)
        self._total = graph("Mul", self._rows, self._columns)
        self._find_neighbours()

    def _find_neighbours(self) -> None:
        """Where each neighbour of the first tile lies, behind a margin of zero tiles."""
        graph, none, self._axis = self._graph, self._graph.integers(0), self._graph.integers(1)
        row, column = (graph.integers(*numbers) for numbers in zip(*_NEIGHBOURS, strict=True))
        margin = graph("Add", self._columns, self._axis)
        shifts = graph("Add", graph("Mul", row, self._columns), column)
        starts = graph("Add", shifts, margin)
        self._starts = graph.split(starts, len(_NEIGHBOURS))
        self._ends = graph.split(graph("Add", starts, self._total), len(_NEIGHBOURS))
        end = [none, margin, none, none]
        self._margins = graph("Concat", *end, *end, axis=0)

    def cut(self, planes: str, count: str | int, spare: int = 0) -> str:
        """(B, n, h, w) -> (B, T, n + spare, S), the spare planes 0."""
        graph = self._graph
        excess = graph("Sub", self._whole, self._size)
        pads = graph("Concat", graph.integers(0, 0, 0, 0, 0, spare), excess, axis=0)
        padded = graph("Pad", planes, pads)
        squares = [self._rows, self._length, self._columns, self._length]
        split = graph("Reshape", padded, graph("Concat", graph.integers(0, 0), *squares, axis=0))
        ordered = graph("Transpose", split, perm=[0, 2, 4, 1, 3, 5])
        count = count if isinstance(count, str) else graph.integers(count + spare)
        shape = [self._batch, self._total, count, graph.integers(self.side**2)]
        return graph("Reshape", ordered, graph("Concat", *shape, axis=0))

    def join(self, tiled: str, count: str, output: str) -> str:
        """(B, T, n, S) -> (B, n, h, w)."""
        graph = self._graph
        squares = [self._batch, self._counts, count, self._length, self._length]
        split = graph("Reshape", tiled, graph("Concat", *squares, axis=0))
        ordered = graph("Transpose", split, perm=[0, 3, 1, 4, 2, 5])
        shape = graph("Concat", self._batch, count, self._whole, axis=0)
        whole = graph("Reshape", ordered, shape)
        first, axes = graph.integers(0, 0), graph.integers(2, 3)
        return graph("Slice", whole, first, self._size, axes, output=output)

    def gather(self, graph: Builder, tiled: str, count: int = len(_NEIGHBOURS)) -> str:
        """(B, T, n, S) -> (B, T, n, count * S): the first `count` neighbours of each tile."""
        padded = graph("Pad", tiled, self._margins)
        bounds = zip(self._starts[:count], self._ends[:count], strict=True)
        parts = [graph("Slice", padded, start, end, self._axis) for start, end in bounds]
        return graph("Concat", *parts, axis=3)


def double_transition(graph: Builder, tiles: Tiles, planes: str, pairs: PairOffsets) -> str:
    """(B, T, K + 1, S) -> 2 T as bands (B, T, 9 * S, S): neighbours' cells to a tile's."""
    none = len(pairs) * _INWARD * tiles.side**2
    sources = graph("Reshape", tiles.gather(graph, planes, _INWARD), graph.integers(0, 0, -1))
    table = graph.constant(_band_table(pairs, tiles.side, none, none + 1))
    itself = graph("Equal", table, graph.constant(np.array(none + 1, np.int32)))
    itself = graph("Unsqueeze", graph("Cast", itself, to=TensorProto.FLOAT), graph.integers(2))
    # With the tiles last, a gather copies rows instead of single values: (B, 9 * S, S, T).
    rows = graph("Gather", graph("Transpose", sources, perm=[0, 2, 1]), table, axis=1)
    weights = graph("Add", rows, itself)
    degrees = graph("ReduceSum", weights, graph.integers(1), keepdims=1)
    weights = graph("Mul", weights, graph("Div", graph.floats(2), degrees))
    return graph("Transpose", weights, perm=[0, 3, 1, 2])


def _band_table(pairs: PairOffsets, side: int, none: int, itself: int) -> NDArray[np.int32]:
    """(9 * S, S): where the weight from a neighbour's cell to a cell of the tile is found.

    Positions count through (K + 1, `_INWARD` * S); `none` and `itself` lie in the spare plane.
    """
    area = side**2
    table = np.full((len(_NEIGHBOURS) * area, area), none, dtype=np.int32)

    def place(row: int, column: int) -> int:
        tile = (row // side + 1) * 3 + column // side + 1
        return tile * area + row % side * side + column % side

    for cell in range(area):
        row, column = divmod(cell, side)
        table[place(row, column), cell] = itself
        for plane, (dy, dx) in enumerate(pairs.offsets):
            first = plane * _INWARD * area
            # The pair's affinity is stored at its from-cell: this one, or the other.
            table[place(row + dy, column + dx), cell] = first + place(row, column)
            other = place(row - dy, column - dx)
            table[other, cell] = first + other
    return table
