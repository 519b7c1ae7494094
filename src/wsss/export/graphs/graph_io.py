"""Inputs and outputs of the exported graphs: names, types, and the names of what varies."""

from collections.abc import Collection, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...runtime.bundle.inputs import UNKNOWN, Layout
from ...training.methods.contract import AffinityKind

_LABELS = ("label", "confidence", "scores")
_WALKED = (*_LABELS, "used_classes", "change")
_TENSORS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "cam": (("image",), ("cam", "probabilities")),
    "features": (("image",), ("affinity",)),
    "boundary": (("image",), ("boundary", "displacement")),
    "refine": (("image", "cam", "probabilities", "affinity", "boundary", "present"), _WALKED),
    "label": (("image", "present"), _WALKED),
    "segmenter": (("image",), _LABELS),
}
"""The inputs and outputs of each graph, by its role; affinities have two, see `AffinitySource`."""
AFFINITY_OUTPUTS: dict[AffinityKind, str] = {"features": "affinity", "boundary": "boundary"}
"""The output of the graph of affinities that `refine` takes."""


def graph_tensors(
    role: str,
    layout: Layout,
    num_classes: int,
    num_pairs: int,
    *,
    affinity: AffinityKind = "features",
    outputs: Collection[str] | None = None,
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Inputs and outputs of a graph.

    Args:
        role: cam, features or boundary (affinities), refine, label or segmenter.
        num_pairs: planes of the affinity: neighbours of a cell, each pair once.
        affinity: what `refine` takes.
        outputs: that the graph has; None: all that it may have.
    """
    pixels = ["height", "width"]
    grid = pixels if role == "segmenter" else ["grid_height", "grid_width"]
    known: dict[str, tuple[int, list[str | int]]] = {
        "image": (TensorProto.UINT8, image_shape(layout)),
        "cam": (TensorProto.FLOAT, ["batch", num_classes, "cam_height", "cam_width"]),
        "probabilities": (TensorProto.FLOAT, ["batch", num_classes]),
        "affinity": (TensorProto.FLOAT, ["batch", num_pairs, *grid]),
        "boundary": (TensorProto.FLOAT, ["batch", 1, *grid]),
        "displacement": (TensorProto.FLOAT, ["batch", 2, *grid]),
        "present": (TensorProto.FLOAT, ["present_batch", num_classes]),
        "label": (TensorProto.UINT8, ["batch", *pixels]),
        "confidence": (TensorProto.FLOAT, ["batch", *pixels]),
        "scores": (TensorProto.FLOAT, ["batch", num_classes + 1, *grid]),
        "used_classes": (TensorProto.FLOAT, ["batch", num_classes]),
        "change": (TensorProto.FLOAT, ["batch", 1]),
    }
    inputs, given = _TENSORS[role]
    absent = {tensor for kind, tensor in AFFINITY_OUTPUTS.items() if kind != affinity}
    taken = [tensor for tensor in inputs if tensor not in absent]
    given = [tensor for tensor in given if outputs is None or tensor in outputs]
    taken_infos, given_infos = (
        [helper.make_tensor_value_info(tensor, *known[tensor]) for tensor in side]
        for side in (taken, given)
    )
    return taken_infos, given_infos


def image_shape(layout: Layout) -> list[str | int]:
    """Axes of a batch of images, named where they are known only when the graph runs."""
    if layout == "nhwc":
        return ["batch", "height", "width", 3]
    return ["batch", 3, "height", "width"]


def unknown_classes(num_classes: int) -> onnx.TensorProto:
    """The default of `present`: an initializer under the name of an input is its default."""
    return numpy_helper.from_array(np.full((1, num_classes), UNKNOWN, np.float32), "present")
