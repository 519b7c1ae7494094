"""Networks in float16 or int8. Everything around them, the walk first of all, stays in float32."""

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import ConfigError
from ..runtime.refine.geometry import Align, image_tensor, resize, scaled_size
from .graphs.trace import PIXELS, NetworkGraph

Precision = Literal["fp32", "fp16", "int8"]

LEAST_AGREEMENT: dict[Precision, float] = {"fp32": 0.999, "fp16": 0.995, "int8": 0.95}
"""Share of pixels whose label must stay: fp32 against torch, the others against fp32."""
_KEPT = ("MatMul", "Softmax")
"""Stay in float32: CIAN's affinities, whose products nothing divides in front of the softmax."""
_CALIBRATION_SCALES = (0.5, 1.0, 1.5)


def require_precision(name: str) -> Precision:
    """The precision of that name.

    Raises:
        ConfigError: there is none.
    """
    for precision in LEAST_AGREEMENT:
        if name == precision:
            return precision
    raise ConfigError(f"unknown precision '{name}': choose of {', '.join(get_args(Precision))}")


def to_precision(
    network: NetworkGraph,
    precision: Precision,
    images: Sequence[NDArray[np.uint8]],
    align: Align,
    *,
    symmetric: bool = False,
) -> NetworkGraph:
    """A network in another precision, itself in fp32.

    Args:
        images: (H, W, 3) uint8 RGB that int8 is calibrated on.
        symmetric: see `eight_bits`.
    """
    if precision == "fp32":
        return network
    if precision == "fp16":
        return half_precision(network)
    return eight_bits(network, _scaled(network, images, align), symmetric=symmetric)


def _scaled(
    network: NetworkGraph, images: Iterable[NDArray[np.uint8]], align: Align
) -> Iterator[NDArray[np.float32]]:
    """Normalised images at the scales at which networks see them."""
    for image in images:
        for scale in _CALIBRATION_SCALES:
            size = (image.shape[0], image.shape[1])
            target = scaled_size(size, scale, align, network.padded_stride)
            pixels = resize(image_tensor(image), target, align)
            yield network.normalisation.apply(pixels).numpy()


def half_precision(network: NetworkGraph) -> NetworkGraph:
    """Weights and activations in float16; input and outputs stay float32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = _copy(network.model)
    model = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_KEPT]
    )
    _join_casts(model.graph)
    return replace(network, model=_sorted(model))


def _join_casts(graph: onnx.GraphProto) -> None:
    """Let the nodes of `_KEPT` read each other in float32: the converter rounds between them.

    Casts that nobody reads any longer stay: whoever takes the network in takes what it needs.
    """
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    made = {name for node in graph.node if node.op_type in _KEPT for name in node.output}
    rounded = {
        node.output[0]: node.input[0]
        for node in graph.node
        if _casts_to(node, half) and node.input[0] in made
    }
    same = {
        node.output[0]: rounded[node.input[0]]
        for node in graph.node
        if _casts_to(node, full) and node.input[0] in rounded
    }
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and onnx.helper.get_node_attr_value(node, "to") == kind


def eight_bits(
    network: NetworkGraph, pixels: Iterable[NDArray[np.float32]], *, symmetric: bool
) -> NetworkGraph:
    """Weights and activations in int8 between Quantize and Dequantize nodes, scales by channel.

    Args:
        pixels: normalised images (B, 3, H, W) whose activations set the ranges.
        symmetric: zero points of 0, as TensorRT demands; else those that suit ReLUs, which let
            onnxruntime leave the clipping out.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, Any]] = ({PIXELS: array} for array in pixels)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as folder, _quiet():
        kept = [node.name for node in network.model.graph.node if node.op_type in _KEPT]
        plain, quantised = Path(folder, "plain.onnx"), Path(folder, "int8.onnx")
        onnx.save(network.model, plain)
        quantize_static(
            plain,
            quantised,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
        )
        model = onnx.load(quantised)
    return replace(network, model=_sorted(model))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice to users of its own command line, which goes to the root."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


def _sorted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with every node behind those it reads from; converters append theirs."""
    known = {value.name for value in (*model.graph.input, *model.graph.initializer)} | {""}
    waiting, ordered = [_copy_node(node) for node in model.graph.node], list[onnx.NodeProto]()
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        if not ready:
            raise RuntimeError(f"the converted network has a cycle at '{waiting[0].name}'")
        waiting = [node for node in waiting if not known.issuperset(node.input)]
        ordered += ready
        known |= {value for node in ready for value in node.output}
    del model.graph.node[:], model.graph.value_info[:], model.metadata_props[:]
    model.graph.node.extend(ordered)
    return model


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _copy_node(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
