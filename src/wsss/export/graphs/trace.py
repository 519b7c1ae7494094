"""A trained network as a piece of ONNX graph: normalised pixels in, maps out, any batch and size.

The exporter of torch traces it; everything around it (scales, mirrors, walk) is written by hand in
the sibling modules, where its rules can be read.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import onnx
import torch
from torch import Tensor, nn

from ...errors import MissingDependencyError
from ...training.backbones.backbone import Normalisation
from ...training.engine.networks import Network
from .builder import OPSET

PIXELS = "pixels"
"""The input of every network: (batch, 3, height, width), normalised."""
_EXAMPLE = (4, 3, 161, 225)
"""Traced with: a batch whose half is above 1 keeps both dynamic, unlike odd sides keep them apart.
"""
_NO_LIMIT = 2**31
"""Elements: weights of any size are folded with the normalisation that follows them."""


@dataclass(frozen=True)
class NetworkGraph:
    """A network as ONNX, and what it was traced from.

    Attributes:
        stage: that trained it.
        model: input `pixels`; its value names are those of the traced operations.
        normalisation: of the pixels it expects.
        stride: pixels per cell of its maps.
        padded_stride: pixels to a multiple of which its input must be brought.
    """

    stage: str
    model: onnx.ModelProto
    program: torch.export.ExportedProgram
    normalisation: Normalisation
    stride: int
    padded_stride: int

    def intermediates(self, pixels: Tensor) -> dict[str, Tensor]:
        """Result of every traced operation, under the name that it has in the model."""
        recorder = _Recorder(self.program.module())
        with torch.no_grad():
            recorder.run(pixels)
        return recorder.values


def network_graph(stage: str, network: Network) -> NetworkGraph:
    """Trace the network of a stage in evaluation mode, without its normalisation; see
    `Network.traced`.

    Raises:
        MissingDependencyError: onnxscript is not installed.
    """
    read, names = network.traced()
    model, program = _trace(_Normalised(network, read).eval(), names)
    backbone = network.backbone
    return NetworkGraph(
        stage, model, program, backbone.normalisation, network.map_stride, backbone.output_stride
    )


class _Normalised(nn.Module):
    """A network without its normalisation, which graphs have as a node of their own."""

    def __init__(self, network: Network, read: Callable[[Mapping[str, Tensor]], object]) -> None:
        super().__init__()
        self.network = network
        self.read = read

    def forward(self, pixels: Tensor) -> object:
        """What `read` makes of normalised pixels."""
        return self.read(self.network.backbone.forward_normalised(pixels))


def _trace(
    module: nn.Module, names: tuple[str, ...]
) -> tuple[onnx.ModelProto, torch.export.ExportedProgram]:
    dynamic = torch.export.Dim.DYNAMIC
    with _silence():
        try:
            program = torch.onnx.export(
                module,
                (torch.zeros(_EXAMPLE),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[PIXELS],
                output_names=list(names),
                dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
                verbose=False,
            )
            from onnxscript import optimizer
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("onnxscript", "onnx_ir"):
                raise
            raise MissingDependencyError(
                "onnxscript is not installed, torch exports through it: pip install 'wsss[export]'"
            ) from None
        if program is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        optimizer.optimize_ir(
            program.model, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT
        )
    model = program.model_proto
    _forget_traces(model)
    return model, cast(torch.export.ExportedProgram, program.exported_program)


def _forget_traces(model: onnx.ModelProto) -> None:
    """Drop paths and stack traces of this machine, shapes that other parts make untrue, and what
    only onnxruntime understands."""
    del model.graph.value_info[:]
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        if node.op_type == "Reshape":  # no map is empty, so nothing is told by `allowzero`
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]


@contextmanager
def _silence() -> Iterator[None]:
    """The exporter's remarks are about itself: absent torchvision, deprecations within torch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Recorder(torch.fx.Interpreter):
    """Runs a traced program and keeps every tensor by its name."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__(cast(torch.fx.GraphModule, module))
        self.values: dict[str, Tensor] = {}

    def run_node(self, node: torch.fx.Node) -> object:
        """Keep what the operation returned."""
        value = super().run_node(node)
        if isinstance(value, Tensor):
            self.values[node.name] = value
        return value
