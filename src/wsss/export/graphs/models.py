"""The graphs of a bundle, written from the rules of `runtime`: CAM, affinity, refinement, label.

Each `add_*` appends one box of the method's figure and returns the names of its results; the
models put boxes together. Those with a network in them stand here, the last one in `refinement.py`.
Every size is computed inside of the graph, so that a file takes any batch and any image. Sources:
`runtime/refine/cam.py` and the stages of `training`, against which `parity.py` measures each.
"""

from collections.abc import Callable, Mapping

import onnx
from onnx import TensorProto, helper

from ...runtime.refine.pairs import PairOffsets
from . import geometry
from .builder import IR_VERSION, OPSET
from .graph_context import GraphContext, GraphSettings
from .graph_io import graph_tensors, unknown_classes
from .merge import merge_equal
from .pairs import add_boundary_affinity
from .refinement import add_refinement
from .subgraph import add_network, needed_constants, needed_nodes
from .trace import NetworkGraph
from .walk import add_affinity

FEATURES, AFFINITY, BOUNDARY = "affinity/features", "affinity/planes", "{stage}/boundary"
"""Tensors between the boxes, where `first_difference` looks first; see also `refinement.py`."""


def cam_model(network: NetworkGraph, settings: GraphSettings) -> onnx.ModelProto:
    """image -> `cam` (B, C, h, w), each map divided by its maximum; `probabilities` (B, C)."""
    context = GraphContext(settings)
    names = add_cam(context, "image", network)
    return _model("cam", context, dict(zip(_CAM, names, strict=True)))


def affinity_model(network: NetworkGraph, settings: GraphSettings) -> onnx.ModelProto:
    """image -> what the walk takes, by kind of the affinities.

    features: `affinity` (B, K, h, w), the exponent of the walk applied. boundary: `boundary` (B, 1,
    h, w) in [0, 1] and, if it is learnt, `displacement` (B, 2, h, w).
    """
    context = GraphContext(settings)
    if settings.affinity_kind == "boundary":
        outputs = add_boundary(context, "image", network)
    else:
        outputs = {"affinity": add_affinities(context, "image", network)}
    return _model(settings.affinity_kind, context, outputs, name=network.stage)


def refine_model(settings: GraphSettings) -> onnx.ModelProto:
    """cam, probabilities, affinity, present -> label, confidence, scores, used_classes, change.

    The input `image` gives nothing but its size.
    """
    context = GraphContext(settings)
    affinities = ("affinity", "")
    if settings.affinity_kind == "boundary":
        affinities = add_affinities_of_boundary(context, "boundary")
    outputs = add_refinement(context, "image", *_CAM, *affinities)
    return _model("refine", context, outputs)


def label_model(
    cam: NetworkGraph, affinity: NetworkGraph, settings: GraphSettings
) -> onnx.ModelProto:
    """image, present -> what `refine_model` gives: the whole way as one graph."""
    context = GraphContext(settings)
    maps, probabilities = add_cam(context, "image", cam)
    if settings.affinity_kind == "boundary":
        boundary = add_boundary(context, "image", affinity)["boundary"]
        affinities = add_affinities_of_boundary(context, boundary)
    else:
        affinities = (add_affinities(context, "image", affinity), "")
    outputs = add_refinement(context, "image", maps, probabilities, *affinities)
    return _model("label", context, outputs)


def segmenter_model(network: NetworkGraph, settings: GraphSettings) -> onnx.ModelProto:
    """image -> label, confidence, scores (B, C + 1, H, W) that sum to 1; no image labels."""
    context = GraphContext(settings)
    outputs = add_segmentation(context, "image", network)
    return _model("segmenter", context, outputs)


MODELS: dict[str, Callable[..., onnx.ModelProto]] = {
    "cam": cam_model,
    "affinity": affinity_model,
    "refine": refine_model,
    "label": label_model,
    "segmenter": segmenter_model,
}
"""By part of the method: from the networks in it, as `source.graphs_of` lists them, and the
settings."""
_CAM = ("cam", "probabilities")


def add_cam(context: GraphContext, image: str, network: NetworkGraph) -> tuple[str, str]:
    """Multi-scale class activation maps and class probabilities: `multi_scale_cam`."""
    settings, graph = context.settings, context.at("cam/")
    pixels, size = geometry.add_image(graph, image, settings.layout)
    target = geometry.add_grid_size(graph, size, settings.map_stride, settings.align)
    total = ""
    for scale in settings.cam_scales:
        place = f"cam/scale_{scale:g}"
        scaled = _scaled_pixels(context, pixels, size, scale, network, place)
        maps = _mirrored_sum(context, scaled, network, "activation", settings.cam_flip, place)
        summed = geometry.add_resize(graph, maps, target, settings.align)
        total = graph("Add", total, summed) if total else summed
    peak = graph("ReduceMax", total, graph.integers(2, 3), keepdims=1)
    cam = graph("Div", total, graph("Add", peak, graph.floats(1e-5)))
    return cam, _add_probabilities(context, pixels, network)


def _add_probabilities(context: GraphContext, pixels: str, network: NetworkGraph) -> str:
    """(B, C) of the classifier, which sees the whole image as a square."""
    graph, side = context.at("classifier/"), context.settings.classifier_side
    square = geometry.add_resize(graph, pixels, graph.integers(side, side), "reference")
    normal = geometry.add_normalisation(graph, square, network.normalisation)
    outputs = _add_network(context, network, normal, "classifier")
    return graph("Sigmoid", outputs["logits"])


def _scaled_pixels(
    context: GraphContext, pixels: str, size: str, scale: float, network: NetworkGraph, place: str
) -> str:
    """The image at one scale, normalised."""
    graph, align = context.at(f"{place}/"), context.settings.align
    if scale != 1 or align == "corners":
        target = geometry.add_scaled_size(graph, size, scale, align, network.padded_stride)
        pixels = geometry.add_resize(graph, pixels, target, align)
    return geometry.add_normalisation(graph, pixels, network.normalisation)


def _mirrored_sum(
    context: GraphContext, pixels: str, network: NetworkGraph, output: str, flip: bool, place: str
) -> str:
    """Maps of an image, plus the mirrored maps of its mirror."""
    graph = context.at(f"{place}/")
    if not flip:
        return _add_network(context, network, pixels, place)[output]
    both = graph("Concat", pixels, geometry.add_mirror(graph, pixels), axis=0)
    maps = _add_network(context, network, both, place)[output]
    upright, mirrored = graph.split(maps, 2)
    return graph("Add", upright, geometry.add_mirror(graph, mirrored))


def _add_network(
    context: GraphContext, network: NetworkGraph, pixels: str, place: str
) -> dict[str, str]:
    """A network at a place; `first_difference.py` finds it there by its name."""
    graph = context.at(f"{place}/")
    return add_network(graph, f"{network.stage}_network", network.model, pixels, f"{place}/network")


def add_affinities(context: GraphContext, image: str, network: NetworkGraph) -> str:
    """Affinities as distances of features: `image_features` and `affinity_from_features`."""
    settings, graph = context.settings, context.at("affinity/")
    pixels, size = geometry.add_image(graph, image, settings.layout)
    base, multiple = size, network.stride
    if settings.align == "corners":
        base = geometry.add_scaled_size(graph, size, 1.0, "corners", network.stride)
        multiple = network.padded_stride
    size_at_one = geometry.add_scaled_size(graph, base, 1.0, settings.align, multiple)
    grid = geometry.add_ceil(graph, size_at_one, graph.integers(network.stride))
    total = ""
    for scale in settings.affinity_scales:
        features = _features(context, pixels, base, scale, multiple, network)
        if scale != 1:
            features = geometry.add_resize(graph, features, grid, settings.align)
        total = graph("Add", total, features) if total else features
    if len(settings.affinity_scales) > 1:
        total = graph("Div", total, graph.floats(len(settings.affinity_scales)))
    graph("Identity", total, output=FEATURES)
    walk = settings.walk
    add_affinity(
        context.nodes,
        context.constants,
        features=FEATURES,
        affinity=AFFINITY,
        prefix="affinity/pairs/",
        radius=walk.radius,
        beta=walk.beta,
        borders=walk.borders,
    )
    return AFFINITY


def _features(
    context: GraphContext,
    pixels: str,
    base: str,
    scale: float,
    multiple: int,
    network: NetworkGraph,
) -> str:
    place, align = f"affinity/scale_{scale:g}", context.settings.align
    graph = context.at(f"{place}/")
    size = base
    if scale != 1 or align == "corners":
        size = geometry.add_scaled_size(graph, base, scale, align, multiple)
        pixels = geometry.add_resize(graph, pixels, size, align)
    normal = geometry.add_normalisation(graph, pixels, network.normalisation)
    if align == "reference":
        normal = geometry.add_padding(graph, normal, size, network.stride)
    return _add_network(context, network, normal, place)["features"]


def add_boundary(context: GraphContext, image: str, network: NetworkGraph) -> dict[str, str]:
    """Boundaries, and displacements if they are learnt: `image_maps`."""
    settings, graph = context.settings, context.at(f"{network.stage}/")
    pixels, size = geometry.add_image(graph, image, settings.layout)
    place = f"{network.stage}/scale_1"
    normal = _scaled_pixels(context, pixels, size, 1.0, network, place)
    if settings.align == "reference":
        normal = geometry.add_padding(graph, normal, size, network.padded_stride)
    both = graph("Concat", normal, geometry.add_mirror(graph, normal), axis=0)
    maps = _add_network(context, network, both, place)
    upright, mirrored = graph.split(maps["boundary"], 2)
    logits = graph("Add", upright, geometry.add_mirror(graph, mirrored))
    maps["boundary"] = graph("Sigmoid", graph("Mul", logits, graph.floats(0.5)))
    if settings.align == "reference":
        grid = geometry.add_ceil(graph, size, graph.integers(network.stride))
        first, axes = graph.integers(0, 0), graph.integers(2, 3)
        maps = {name: graph("Slice", each, first, grid, axes) for name, each in maps.items()}
    boundary = BOUNDARY.format(stage=network.stage)
    graph("Identity", maps["boundary"], output=boundary)
    return maps | {"boundary": boundary}


def add_affinities_of_boundary(context: GraphContext, boundary: str) -> tuple[str, str]:
    """Affinities that boundaries leave, and what CAMs are multiplied by before the walk, or ''."""
    graph, walk = context.at("affinity/"), context.settings.walk
    add_boundary_affinity(
        context.nodes,
        context.constants,
        boundary=boundary,
        affinity=AFFINITY,
        prefix="affinity/paths/",
        radius=walk.radius,
        beta=walk.beta,
        borders=walk.borders,
    )
    return AFFINITY, graph("Sub", graph.floats(1), boundary) if walk.damping else ""


def add_segmentation(context: GraphContext, image: str, network: NetworkGraph) -> dict[str, str]:
    """Logits averaged over scales and mirrors, and their softmax: `segment_image` without CRF."""
    settings, graph = context.settings, context.at("segmenter/")
    pixels, size = geometry.add_image(graph, image, settings.layout)
    total = ""
    for scale in settings.segmenter_scales:
        place = f"segmenter/scale_{scale:g}"
        scaled = _scaled_pixels(context, pixels, size, scale, network, place)
        flip = settings.segmenter_flip
        logits = _mirrored_sum(context, scaled, network, "logits", flip, place)
        # Averaged on the grid, where there is less of it.
        share = len(settings.segmenter_scales) * (2 if flip else 1)
        logits = graph("Mul", logits, graph.floats(1 / share))
        full = geometry.add_resize(graph, logits, size, settings.align)
        total = graph("Add", total, full) if total else full
    best = graph("ReduceMax", total, graph.integers(1), keepdims=1)
    shares = graph("Exp", graph("Sub", total, best))
    sum_ = graph("ReduceSum", shares, graph.integers(1), keepdims=1)
    label = graph("ArgMax", total, axis=1, keepdims=0)
    confidence = graph("Squeeze", graph("Reciprocal", sum_), graph.integers(1))
    return {"label": label, "confidence": confidence, "scores": graph("Div", shares, sum_)}


def _model(
    role: str, context: GraphContext, outputs: Mapping[str, str], name: str | None = None
) -> onnx.ModelProto:
    """Return a model of the nodes that the outputs need; its name is its role by default."""
    settings = context.settings
    pairs = len(PairOffsets(settings.walk.radius)) if settings.walking else 0
    inputs, declared = graph_tensors(
        role,
        settings.layout,
        settings.num_classes,
        pairs,
        affinity=settings.affinity_kind if settings.walking else "features",
        outputs=outputs,
    )
    nodes = needed_nodes(context.nodes, outputs.values())
    kinds = {"label": TensorProto.UINT8}
    nodes += [
        # The cast to uint8 comes last of all: TensorRT knows that type at outputs alone.
        helper.make_node("Cast", [value], [out], out, to=kinds[out])
        if out in kinds
        else helper.make_node("Identity", [value], [out], out)
        for out, value in outputs.items()
    ]
    nodes, constants = merge_equal(nodes, context.constants, outputs)
    constants = needed_constants(constants, nodes)
    if any(value.name == "present" for value in inputs):
        constants.append(unknown_classes(settings.num_classes))
    graph = helper.make_graph(nodes, name or role, inputs, declared, constants)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="wsss"
    )
