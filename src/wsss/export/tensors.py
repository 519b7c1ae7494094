"""Inputs and outputs of the exported graphs: names, types, and the names of what varies."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..runtime.graph_inputs import UNKNOWN, Layout

_LABELS = ("label", "confidence", "scores")
_WALKED = (*_LABELS, "used_classes", "change")
_TENSORS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "cam": (("image",), ("cam", "probabilities")),
    "affinity": (("image",), ("affinity",)),
    "refine": (("image", "cam", "probabilities", "affinity", "present"), _WALKED),
    "label": (("image", "present"), _WALKED),
    "segmenter": (("image",), _LABELS),
}


def graph_tensors(
    name: str, layout: Layout, num_classes: int, num_pairs: int
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Inputs and outputs of a graph.

    Args:
        name: cam, affinity, refine, label or segmenter.
        num_pairs: planes of the affinity: neighbours of a cell, each pair once.
    """
    pixels = ["height", "width"]
    grid = pixels if name == "segmenter" else ["grid_height", "grid_width"]
    known: dict[str, tuple[int, list[str | int]]] = {
        "image": (TensorProto.UINT8, image_shape(layout)),
        "cam": (TensorProto.FLOAT, ["batch", num_classes, "cam_height", "cam_width"]),
        "probabilities": (TensorProto.FLOAT, ["batch", num_classes]),
        "affinity": (TensorProto.FLOAT, ["batch", num_pairs, *grid]),
        "present": (TensorProto.FLOAT, ["present_batch", num_classes]),
        "label": (TensorProto.UINT8, ["batch", *pixels]),
        "confidence": (TensorProto.FLOAT, ["batch", *pixels]),
        "scores": (TensorProto.FLOAT, ["batch", num_classes + 1, *grid]),
        "used_classes": (TensorProto.FLOAT, ["batch", num_classes]),
        "change": (TensorProto.FLOAT, ["batch"]),
    }
    inputs, outputs = (
        [helper.make_tensor_value_info(tensor, *known[tensor]) for tensor in side]
        for side in _TENSORS[name]
    )
    return inputs, outputs


def image_shape(layout: Layout) -> list[str | int]:
    """Axes of a batch of images, named where they are known only when the graph runs."""
    if layout == "nhwc":
        return ["batch", "height", "width", 3]
    return ["batch", 3, "height", "width"]


def unknown_classes(num_classes: int) -> onnx.TensorProto:
    """The default of `present`: an initializer under the name of an input is its default."""
    return numpy_helper.from_array(np.full((1, num_classes), UNKNOWN, np.float32), "present")
