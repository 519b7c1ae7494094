"""`runtime/refine/geometry.py` as operators: where grid cells are on pixels, for any image size.

Sizes are int64 tensors [height, width]. Rounding is done in whole numbers, half to even, as Python
rounds the same fractions; no float rounding can move a grid by a cell.
"""

import numpy as np
from onnx import TensorProto

from ...runtime.bundle.inputs import Layout
from ...runtime.refine.geometry import Align, exact_ratio
from ...training.backbones.backbone import Normalisation
from .builder import Builder

_LAST = np.iinfo(np.int64).min
"""End of a slice that runs backwards through the first element."""


def add_image(graph: Builder, image: str, layout: Layout) -> tuple[str, str]:
    """uint8 images -> float32 (B, 3, H, W) in 0..255, and their size."""
    # Cast at once, the shape is taken behind it: TensorRT knows uint8 at inputs alone.
    pixels = graph("Cast", image, to=TensorProto.FLOAT)
    if layout == "nhwc":
        pixels = graph("Transpose", pixels, perm=[0, 3, 1, 2])
    return pixels, graph("Shape", pixels, start=2)


def add_normalisation(graph: Builder, pixels: str, normalisation: Normalisation) -> str:
    """`Normalisation.apply`: RGB in 0..255 -> what a network expects."""
    if normalisation.channel_order == "bgr":
        pixels = graph("Gather", pixels, graph.integers(2, 1, 0), axis=1)
    mean, std = (np.array(values, np.float32) for values in (normalisation.mean, normalisation.std))
    # (x * scale - mean) / std. As one operator of known layout: around Mul and Sub onnxruntime
    # turns the axes of int8 networks, and takes ten times as long.
    factor, shift = np.float32(normalisation.scale) / std, -mean / std
    numbers = (factor, shift, np.zeros(3, np.float32), np.ones(3, np.float32))
    constants = [graph.constant(values) for values in numbers]
    return graph("BatchNormalization", pixels, *constants, epsilon=0.0)


def add_scaled_size(graph: Builder, size: str, scale: float, align: Align, stride: int) -> str:
    """`scaled_size`: to what an image is resized before a network with this stride."""
    ratio, one = exact_ratio(scale), graph.integers(1)
    if align == "reference":
        scaled = graph("Mul", size, graph.integers(ratio.numerator))
        return graph("Max", _rounded(graph, scaled, ratio.denominator), one)
    spans = graph("Mul", graph("Sub", size, one), graph.integers(ratio.numerator))
    cells = graph("Max", _rounded(graph, spans, ratio.denominator * stride), one)
    return graph("Add", graph("Mul", cells, graph.integers(stride)), one)


def add_grid_size(graph: Builder, size: str, stride: int, align: Align) -> str:
    """`grid_size`: cells that cover an image."""
    if align == "corners" and stride > 1:
        one = graph.integers(1)
        return graph("Add", _rounded(graph, graph("Sub", size, one), stride), one)
    return add_ceil(graph, size, graph.integers(stride))


def add_ceil(graph: Builder, size: str, divisor: str) -> str:
    """ceil(size / divisor)."""
    above = graph("Sub", graph("Add", size, divisor), graph.integers(1))
    return graph("Div", above, divisor)


def _rounded(graph: Builder, value: str, divisor: int) -> str:
    """value / divisor to the nearest whole number, half to even; value >= 0."""
    if divisor == 1:
        return value
    twice = graph("Add", graph("Mul", value, graph.integers(2)), graph.integers(divisor))
    double = graph.integers(2 * divisor)
    nearest = graph("Div", twice, double)
    is_tie = graph("Equal", graph("Mod", twice, double), graph.integers(0))
    odd = graph("Mod", nearest, graph.integers(2))
    down = graph("Mul", graph("Cast", is_tie, to=TensorProto.INT64), odd)
    return graph("Sub", nearest, down)


def add_resize(graph: Builder, maps: str, size: str, align: Align) -> str:
    """`resize`: bilinear, (B, C, h, w) to a size."""
    planes = graph("Shape", maps, start=0, end=2)
    mode = "align_corners" if align == "corners" else "half_pixel"
    return graph(
        "Resize",
        maps,
        "",
        "",
        graph("Concat", planes, size, axis=0),
        mode="linear",
        coordinate_transformation_mode=mode,
    )


def add_to_full_size(graph: Builder, maps: str, size: str, align: Align) -> str:
    """`to_full_size`: grid maps at the size of the image."""
    if align == "corners":
        return add_resize(graph, maps, size, align)
    cells = graph("Shape", maps, start=2)
    covered = graph("Mul", cells, add_ceil(graph, size, cells))
    enlarged = add_resize(graph, maps, covered, align)
    return graph("Slice", enlarged, graph.integers(0, 0), size, graph.integers(2, 3))


def add_block_mean(graph: Builder, planes: str, size: str, stride: str) -> str:
    """`reduce_by_mean`: mean over stride x stride blocks; zeros fill the last blocks."""
    cells = add_ceil(graph, size, stride)
    excess = graph("Sub", graph("Mul", cells, stride), size)
    padded = graph("Pad", planes, graph("Concat", graph.integers(0, 0, 0, 0, 0, 0), excess, axis=0))
    rows, columns = graph.split(cells, 2)
    shape = graph("Concat", graph.integers(0, 0), rows, stride, columns, stride, axis=0)
    blocks = graph("Reshape", padded, shape)
    return graph("ReduceMean", blocks, graph.integers(3, 5), keepdims=0)


def add_padding(graph: Builder, pixels: str, size: str, multiple: int) -> str:
    """Zeros at the right and below, so that both sides are multiples."""
    length = graph.integers(multiple)
    excess = graph("Sub", graph("Mul", add_ceil(graph, size, length), length), size)
    return graph("Pad", pixels, graph("Concat", graph.integers(0, 0, 0, 0, 0, 0), excess, axis=0))


def add_mirror(graph: Builder, maps: str) -> str:
    """Left and right exchanged in (B, C, h, w)."""
    backwards = graph.integers(-1)
    return graph("Slice", maps, backwards, graph.integers(_LAST), graph.integers(3), backwards)
