"""Where a graph parts from torch: the first node whose output is another.

Inside of networks every traced operation is compared, under the name that it kept; between them
the tensors that pass from box to box. Nodes of the walk in between are told by its result.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor

from ...runtime.backends.registry import open_graph
from ...runtime.refine.pseudo_labels import scores_on_grid, walk_planes
from ...training.engine.networks import Network
from ...training.methods.shared.classifier import (
    CamClassifier,
    class_probabilities,
    image_activation,
)
from ...training.methods.shared.segmenter_network import Segmenter, segment_logits
from ..graphs.models import AFFINITY, BOUNDARY, FEATURES
from ..graphs.refinement import PLANES, WALKED
from ..graphs.subgraph import values_of
from ..source import ExportSource
from .reference import Arrays, ParityCase


def first_difference(
    source: ExportSource, path: Path, case: ParityCase, inputs: Arrays, tolerance: float
) -> str:
    """A line that names the first node which differs by more than the tolerance.

    Args:
        path: of the graph.
        inputs: of the whole case; its images are looked at one by one.
        tolerance: relative to the greatest value of a tensor.
    """
    model = onnx.load(path)
    for index in range(len(case.images)):
        one = {name: array[index : index + 1] for name, array in inputs.items()}
        expected = dict(_waypoints(source, model, case, index, one))
        found = _run_with(model, one, list(expected))
        for node in model.graph.node:
            for value in node.output:
                if value in found and _differs(found[value], expected[value], tolerance):
                    error = _distance(found[value], expected[value])
                    return (
                        f"they part at node '{node.name}' ({node.op_type}), whose output "
                        f"'{value}' is {error:.2g} off"
                    )
    return "each image by itself agrees at every node that was compared"


def _differs(found: NDArray[Any], expected: NDArray[Any], tolerance: float) -> bool:
    if found.shape != expected.shape:
        return True
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    return not _distance(found, expected) <= tolerance * scale  # so that NaN differs


def _distance(found: NDArray[Any], expected: NDArray[Any]) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0))


def _waypoints(
    source: ExportSource, model: onnx.ModelProto, case: ParityCase, index: int, inputs: Arrays
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Tensor in the graph -> what torch has there, for those tensors that the graph has."""
    made = values_of(model.graph.node)
    for place, stage, pixels in _network_inputs(source, case.images[index]):
        entry = _entry(model, place)
        if entry is None:
            continue
        yield entry, pixels.numpy()
        for name, tensor in source.networks[stage].intermediates(pixels).items():
            if f"{place}/{name}" in made:
                yield f"{place}/{name}", tensor.numpy()
    for name, tensor in _between(source, case, index, inputs):
        if name in made:
            yield name, tensor.numpy()


def _entry(model: onnx.ModelProto, place: str) -> str | None:
    """The tensor that a network at a place takes as its pixels; None where it is not there, or
    shares its first layers with a network at another place."""
    nodes = [node for node in model.graph.node if node.name.startswith(f"{place}/")]
    inner = {value for node in nodes for value in node.output}
    inner |= {tensor.name for tensor in model.graph.initializer}
    outer = [value for node in nodes for value in node.input if value and value not in inner]
    return outer[0] if outer and "/network/" not in outer[0] else None


def _network_inputs(
    source: ExportSource, image: NDArray[np.uint8]
) -> Iterator[tuple[str, str, Tensor]]:
    """Place, stage and pixels of every pass of a network, in the order of the graph."""
    predictor, recipe = source.predictor, source.recipe
    if "cam" in source.networks:
        classifier = predictor.network("cam", CamClassifier)
        with _inputs_of(classifier) as seen:
            image_activation(classifier, image, recipe.cam, predictor.device)
            class_probabilities(classifier, image, recipe.cam, predictor.device)
        places = [f"cam/scale_{scale:g}/network" for scale in recipe.cam.scales]
        for place, pixels in zip([*places, "classifier/network"], seen, strict=True):
            yield place, "cam", pixels
    stage = source.settings.affinity_stage
    if stage in source.networks:
        with _inputs_of(predictor.affinity_network()) as seen:
            predictor.affinities(image)
        rest = [scale for scale in source.settings.affinity_scales if scale != 1]
        # Boundaries see the image and its mirror, one after the other: the graph as one batch.
        passes = [torch.cat(seen)] if source.settings.affinity_kind == "boundary" else seen
        for scale, pixels in zip([1.0, *rest], passes, strict=True):
            yield f"{stage}/scale_{scale:g}/network", stage, pixels
    if "segmenter" in source.networks:
        segmenter, section = predictor.network("segmenter", Segmenter), recipe.segmenter
        with _inputs_of(segmenter) as seen:
            segment_logits(segmenter, image, section, recipe.cam.align, predictor.device)
        for scale, pixels in zip(section.scales, seen, strict=True):
            yield f"segmenter/scale_{scale:g}/network", "segmenter", pixels


@contextmanager
def _inputs_of(network: Network) -> Iterator[list[Tensor]]:
    """Everything that a network's backbone normalises meanwhile, as its graph takes it."""
    seen: list[Tensor] = []
    normaliser = network.backbone.normaliser
    hook = normaliser.register_forward_hook(lambda *call: seen.append(call[-1].clone()))
    try:
        yield seen
    finally:
        hook.remove()


@torch.no_grad()
def _between(
    source: ExportSource, case: ParityCase, index: int, inputs: Arrays
) -> Iterator[tuple[str, Tensor]]:
    """Features, affinities, and what walks."""
    stage = source.settings.affinity_stage
    if stage not in source.networks:
        return
    predictor, walk, image = source.predictor, source.settings.walk, case.images[index]
    affinity, damping = predictor.affinities(image)
    if source.settings.affinity_kind == "features":
        yield FEATURES, predictor.affinity_features(image)
    elif damping is not None:
        yield BOUNDARY.format(stage=stage), 1 - damping
    yield AFFINITY, affinity
    if "cam" not in source.networks:
        return
    classes = case.classes[index] if case.classes else predictor.find_classes(image)
    if not classes:
        return
    maps = predictor.score_maps(image, classes, "cam")
    planes = scores_on_grid(maps, (affinity.shape[-2], affinity.shape[-1]), walk)
    yield PLANES, planes[None] if damping is None else planes[None] * damping
    yield WALKED, walk_planes(planes, affinity, walk, damping)[None]


def _run_with(
    model: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]], names: list[str]
) -> Arrays:
    """Values of inner tensors, computed by onnxruntime."""
    inner = onnx.ModelProto()
    inner.CopyFrom(model)
    known = {output.name for output in inner.graph.output}
    for name in names:
        if name not in known:
            value = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            inner.graph.output.append(value)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "traced.onnx")
        onnx.save(inner, path)
        with closing(open_graph(path, backend="onnxruntime", device="cpu")) as graph:
            return graph.run(inputs, names)
