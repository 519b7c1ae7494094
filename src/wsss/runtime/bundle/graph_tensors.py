"""Tensors of an ONNX file that came from a stranger: types, shapes, data, and sizes asked for."""

import math
from collections import ChainMap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import short_repr

MAX_ELEMENTS = 2**31
"""Of a tensor whose size the file states: 8 GiB of float32, more than any of our graphs needs."""
MAX_RANK = 64
MAX_GRAPH_BYTES = 2**31 - 1
"""Of a file: no protobuf may be larger."""
OPSETS = (18, 20)

TYPES = {
    1: ("float32", "float_data"),
    2: ("uint8", "int32_data"),
    3: ("int8", "int32_data"),
    4: ("uint16", "int32_data"),
    5: ("int16", "int32_data"),
    6: ("int32", "int32_data"),
    7: ("int64", "int64_data"),
    9: ("bool", "int32_data"),
    10: ("float16", "int32_data"),
    11: ("float64", "double_data"),
    12: ("uint32", "uint64_data"),
    13: ("uint64", "uint64_data"),
}
"""Number in the file -> numpy's name, and the field that holds values which are not raw bytes."""
DTYPES = tuple(dtype for dtype, _ in TYPES.values())
"""Of the tensors of a graph, in numpy's names."""
_DATA_FIELDS = (*sorted({field for _, field in TYPES.values()}), "raw_data", "string_data")

_SIZED_BY: dict[str, tuple[int, Callable[[Sequence[int]], int]]] = {
    "ConstantOfShape": (0, math.prod),
    "Resize": (3, math.prod),
    **dict.fromkeys(("Expand", "Reshape", "Tile", "CenterCropPad"), (1, math.prod)),
    **dict.fromkeys(("Pad", "OneHot", "Range"), (1, max)),
    **dict.fromkeys(("HannWindow", "HammingWindow", "BlackmanWindow"), (0, max)),
}
"""Which input tells the size of what an operator makes, and how many elements it asks for."""

Constants = ChainMap[str, tuple[int, ...] | None]
"""Names that can be used at a place in a graph; their value if it is a few constant integers."""


class GraphFaultError(Exception):
    """What is wrong, as the rest of a sentence that begins with the file."""


def check_tensor(tensor: Any) -> None:
    """Refuse a stored tensor whose data do not fill its shape, or that is too large.

    Raises:
        GraphFaultError: with its name.
    """
    where = f"tensor {short_repr(tensor.name)}"
    if tensor.data_type not in TYPES:
        raise GraphFaultError(f"has {where} of type {tensor.data_type}, expected numbers")
    dtype, typed = TYPES[tensor.data_type]
    count = _num_elements(where, tensor.dims)
    if tensor.HasField("segment"):
        raise GraphFaultError(f"has {where} in segments, expected it whole")
    stored = {field: len(getattr(tensor, field)) for field in _DATA_FIELDS}
    stored = {field: length for field, length in stored.items() if length}
    raw = {"raw_data": count * np.dtype(dtype).itemsize}
    if stored not in ((raw, {typed: count}) if count else ({},)):
        found = ", ".join(f"{length} in {field}" for field, length in stored.items()) or "nothing"
        raise GraphFaultError(
            f"has {where} of shape {short_repr(list(tensor.dims))} that holds {found}, "
            f"expected {raw['raw_data']} in raw_data or {count} in {typed}"
        )
    if dtype.startswith("float") and _holds_nan(tensor, dtype):
        raise GraphFaultError(f"has {where} that holds NaN, expected numbers")


def _holds_nan(tensor: Any, dtype: str) -> bool:
    if tensor.raw_data:
        values = np.frombuffer(tensor.raw_data, np.dtype(dtype).newbyteorder("<"))
    elif dtype == "float16":  # its bits
        values = np.array(tensor.int32_data).astype(np.uint16).view(np.float16)
    else:
        values = np.array(tensor.double_data if dtype == "float64" else tensor.float_data)
    return bool(np.isnan(values).any())


def check_value(value: Any) -> None:
    """Refuse a declared tensor of an impossible shape.

    Raises:
        GraphFaultError: with its name.
    """
    if value.type.HasField("tensor_type"):
        dims = value.type.tensor_type.shape.dim
        # Sizes that only the run tells count as 1: the others must be possible by themselves.
        sizes = [dim.dim_value if dim.HasField("dim_value") else 1 for dim in dims]
        _num_elements(f"tensor {short_repr(value.name)}", sizes)


def _num_elements(where: str, dims: Sequence[int]) -> int:
    if len(dims) > MAX_RANK or any(size < 0 for size in dims):
        raise GraphFaultError(
            f"has {where} of shape {short_repr(list(dims))}, expected up to {MAX_RANK} sizes from 0"
        )
    count = math.prod(dims)
    # Without the zeros, as engines multiply in 64 bits before they come to them.
    if math.prod(size or 1 for size in dims) > MAX_ELEMENTS:
        raise GraphFaultError(
            f"has {where} of shape {short_repr(list(dims))}, "
            f"expected at most {MAX_ELEMENTS} elements"
        )
    return count


def integers_of(tensor: Any) -> tuple[int, ...] | None:
    """The values of a checked tensor, if it could be a shape: few, int64."""
    if tensor.data_type != tensor.INT64 or math.prod(tensor.dims) > MAX_RANK:
        return None
    return tuple(np.frombuffer(tensor.raw_data, "<i8").tolist()) or tuple(tensor.int64_data)


def constant_of(node: Any) -> tuple[int, ...] | None:
    """A few integers that a node gives whatever its inputs are."""
    if node.op_type == "Constant":
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.HasField("t"):
                return integers_of(attribute.t)
            if attribute.name in ("value_int", "value_ints"):
                return tuple(attribute.ints[:MAX_RANK]) or (attribute.i,)
    return None


def asked_elements(node: Any, scope: Constants) -> int:
    """How large an output is at least, as far as constants tell directly.

    A size that is computed, even from constants, is not found: memory is then the engine's to
    limit.
    """
    if node.op_type in ("RandomNormal", "RandomUniform"):
        sizes = [tuple(a.ints)[:MAX_RANK] for a in node.attribute if a.name == "shape"]
        return math.prod(map(abs, sizes[0])) if sizes else 0
    index, count = _SIZED_BY.get(node.op_type, (0, math.prod))
    if node.op_type not in _SIZED_BY or index >= len(node.input):
        return 0
    values = scope.get(node.input[index])
    return count([abs(value) or 1 for value in values]) if values else 0
