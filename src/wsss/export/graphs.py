"""The graphs of a bundle, written from the rules of `runtime`: CAM, affinity, refinement, label.

Each `add_*` appends one box of the method's figure and returns the names of its results; the
models put boxes together. Every size is computed inside of the graph, so that a file takes any
batch and any image. Sources: `runtime/cam.py`, `runtime/pseudo_labels.py` and the stages of
`training`, against which `parity.py` measures every graph.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..runtime.geometry import Align
from ..runtime.graph_inputs import Layout
from ..runtime.pairs import PairOffsets
from ..runtime.pseudo_labels import WalkSettings
from ..runtime.walks.graph import add_affinity, add_walk
from ..runtime.walks.graph_boundary import add_boundary_affinity
from ..runtime.walks.graph_builder import IR_VERSION, OPSET, Builder
from . import geometry
from .merge import merge_equal
from .networks import NetworkGraph
from .subgraph import add_network, needed_constants, needed_nodes
from .tensors import graph_tensors, unknown_classes

FEATURES, AFFINITY = "affinity/features", "affinity/planes"
BOUNDARY, PLANES, WALKED = "irnet/boundary", "refine/planes", "refine/walked"
"""Tensors between the boxes, where `locate.py` looks first."""
CLASSES = "refine/classes"
"""Indices of the classes that walk: those in the batch, or any more of them."""


@dataclass(frozen=True)
class GraphSettings:
    """What the graphs of a run depend on besides its networks.

    Attributes:
        affinity_stage: whose network gives the affinities: `affinity` (AffinityNet) or `irnet`.
        class_threshold: probability from which the classifier calls a class present.
        classifier_side: of the square that it sees for that, in pixels.
        walk: random walk and background rule.
        affinity_scales, segmenter_scales, cam_scales: of the image.
    """

    num_classes: int
    layout: Layout
    align: Align
    affinity_stage: str
    cam_scales: tuple[float, ...]
    cam_flip: bool
    map_stride: int
    classifier_side: int
    class_threshold: float
    affinity_scales: tuple[float, ...]
    walk: WalkSettings
    segmenter_scales: tuple[float, ...]
    segmenter_flip: bool


@dataclass
class _Draft:
    """A graph that is being written."""

    settings: GraphSettings
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def at(self, prefix: str) -> Builder:
        """Where nodes of one part are appended."""
        return Builder(self.nodes, self.constants, prefix)


def cam_model(network: NetworkGraph, settings: GraphSettings) -> onnx.ModelProto:
    """image -> `cam` (B, C, h, w), each map divided by its maximum; `probabilities` (B, C)."""
    draft = _Draft(settings)
    names = add_cam(draft, "image", network)
    return _model("cam", draft, dict(zip(_CAM, names, strict=True)))


def affinity_model(network: NetworkGraph, settings: GraphSettings) -> onnx.ModelProto:
    """image -> `affinity` (B, K, h, w), the exponent of the walk applied."""
    draft = _Draft(settings)
    affinity = add_affinities(draft, "image", network)
    return _model("affinity", draft, {"affinity": affinity})


def irnet_model(network: NetworkGraph, settings: GraphSettings) -> onnx.ModelProto:
    """image -> `boundary` (B, 1, h, w) in [0, 1]; if it is learnt, `displacement` (B, 2, h, w)."""
    draft = _Draft(settings)
    return _model("irnet", draft, add_boundary(draft, "image", network))


def refine_model(settings: GraphSettings) -> onnx.ModelProto:
    """cam, probabilities, affinity, present -> label, confidence, scores, used_classes, change.

    The input `image` gives nothing but its size.
    """
    draft = _Draft(settings)
    affinities = ("affinity", "")
    if settings.affinity_stage == "irnet":
        affinities = add_walls(draft, "boundary")
    outputs = add_refinement(draft, "image", *_CAM, *affinities)
    return _model("refine", draft, outputs)


def label_model(
    cam: NetworkGraph, affinity: NetworkGraph, settings: GraphSettings
) -> onnx.ModelProto:
    """image, present -> what `refine_model` gives: the whole way as one graph."""
    draft = _Draft(settings)
    maps, probabilities = add_cam(draft, "image", cam)
    if settings.affinity_stage == "irnet":
        affinities = add_walls(draft, add_boundary(draft, "image", affinity)["boundary"])
    else:
        affinities = (add_affinities(draft, "image", affinity), "")
    outputs = add_refinement(draft, "image", maps, probabilities, *affinities)
    return _model("label", draft, outputs)


def segmenter_model(network: NetworkGraph, settings: GraphSettings) -> onnx.ModelProto:
    """image -> label, confidence, scores (B, C + 1, H, W) that sum to 1; no image labels."""
    draft = _Draft(settings)
    outputs = add_segmentation(draft, "image", network)
    return _model("segmenter", draft, outputs)


MODELS: dict[str, Callable[..., onnx.ModelProto]] = {
    "cam": cam_model,
    "affinity": affinity_model,
    "irnet": irnet_model,
    "refine": refine_model,
    "label": label_model,
    "segmenter": segmenter_model,
}
"""By graph: from the networks in it, as `source.graphs_of` lists them, and the settings."""
_CAM = ("cam", "probabilities")


def add_cam(draft: _Draft, image: str, network: NetworkGraph) -> tuple[str, str]:
    """Multi-scale class activation maps and class probabilities: `multi_scale_cam`."""
    settings, graph = draft.settings, draft.at("cam/")
    pixels, size = geometry.add_image(graph, image, settings.layout)
    target = geometry.add_grid_size(graph, size, settings.map_stride, settings.align)
    total = ""
    for scale in settings.cam_scales:
        place = f"cam/scale_{scale:g}"
        scaled = _scaled_pixels(draft, pixels, size, scale, network, place)
        maps = _mirrored_sum(draft, scaled, network, "activation", settings.cam_flip, place)
        summed = geometry.add_resize(graph, maps, target, settings.align)
        total = graph("Add", total, summed) if total else summed
    peak = graph("ReduceMax", total, graph.integers(2, 3), keepdims=1)
    cam = graph("Div", total, graph("Add", peak, graph.floats(1e-5)))
    return cam, _add_probabilities(draft, pixels, network)


def _add_probabilities(draft: _Draft, pixels: str, network: NetworkGraph) -> str:
    """(B, C) of the classifier, which sees the whole image as a square."""
    graph, side = draft.at("classifier/"), draft.settings.classifier_side
    square = geometry.add_resize(graph, pixels, graph.integers(side, side), "reference")
    normal = geometry.add_normalisation(graph, square, network.normalisation)
    outputs = _add_network(draft, network, normal, "classifier")
    return graph("Sigmoid", outputs["logits"])


def _scaled_pixels(
    draft: _Draft, pixels: str, size: str, scale: float, network: NetworkGraph, place: str
) -> str:
    """The image at one scale, normalised."""
    graph, align = draft.at(f"{place}/"), draft.settings.align
    if scale != 1 or align == "corners":
        target = geometry.add_scaled_size(graph, size, scale, align, network.padded_stride)
        pixels = geometry.add_resize(graph, pixels, target, align)
    return geometry.add_normalisation(graph, pixels, network.normalisation)


def _mirrored_sum(
    draft: _Draft, pixels: str, network: NetworkGraph, output: str, flip: bool, place: str
) -> str:
    """Maps of an image, plus the mirrored maps of its mirror."""
    graph = draft.at(f"{place}/")
    if not flip:
        return _add_network(draft, network, pixels, place)[output]
    both = graph("Concat", pixels, geometry.add_mirror(graph, pixels), axis=0)
    maps = _add_network(draft, network, both, place)[output]
    upright, mirrored = graph.split(maps, 2)
    return graph("Add", upright, geometry.add_mirror(graph, mirrored))


def _add_network(draft: _Draft, network: NetworkGraph, pixels: str, place: str) -> dict[str, str]:
    """A network at a place; `locate.py` finds it there by its name."""
    graph = draft.at(f"{place}/")
    return add_network(graph, f"{network.stage}_network", network.model, pixels, f"{place}/network")


def add_affinities(draft: _Draft, image: str, network: NetworkGraph) -> str:
    """Affinities of AffinityNet features: `image_features` and `affinity_from_features`."""
    settings, graph = draft.settings, draft.at("affinity/")
    pixels, size = geometry.add_image(graph, image, settings.layout)
    base, multiple = size, network.stride
    if settings.align == "corners":
        base = geometry.add_scaled_size(graph, size, 1.0, "corners", network.stride)
        multiple = network.padded_stride
    size_at_one = geometry.add_scaled_size(graph, base, 1.0, settings.align, multiple)
    grid = geometry.add_ceil(graph, size_at_one, graph.integers(network.stride))
    total = ""
    for scale in settings.affinity_scales:
        features = _features(draft, pixels, base, scale, multiple, network)
        if scale != 1:
            features = geometry.add_resize(graph, features, grid, settings.align)
        total = graph("Add", total, features) if total else features
    if len(settings.affinity_scales) > 1:
        total = graph("Div", total, graph.floats(len(settings.affinity_scales)))
    graph("Identity", total, output=FEATURES)
    walk = settings.walk
    add_affinity(
        draft.nodes,
        draft.constants,
        features=FEATURES,
        affinity=AFFINITY,
        prefix="affinity/pairs/",
        radius=walk.radius,
        beta=walk.beta,
        borders=walk.borders,
    )
    return AFFINITY


def _features(
    draft: _Draft, pixels: str, base: str, scale: float, multiple: int, network: NetworkGraph
) -> str:
    place, align = f"affinity/scale_{scale:g}", draft.settings.align
    graph = draft.at(f"{place}/")
    size = base
    if scale != 1 or align == "corners":
        size = geometry.add_scaled_size(graph, base, scale, align, multiple)
        pixels = geometry.add_resize(graph, pixels, size, align)
    normal = geometry.add_normalisation(graph, pixels, network.normalisation)
    if align == "reference":
        normal = geometry.add_padding(graph, normal, size, network.stride)
    return _add_network(draft, network, normal, place)["features"]


def add_boundary(draft: _Draft, image: str, network: NetworkGraph) -> dict[str, str]:
    """Boundaries, and displacements if they are learnt, of IRNet: `image_boundary`."""
    settings, graph = draft.settings, draft.at("irnet/")
    pixels, size = geometry.add_image(graph, image, settings.layout)
    place = "irnet/scale_1"
    normal = _scaled_pixels(draft, pixels, size, 1.0, network, place)
    if settings.align == "reference":
        normal = geometry.add_padding(graph, normal, size, network.padded_stride)
    both = graph("Concat", normal, geometry.add_mirror(graph, normal), axis=0)
    maps = _add_network(draft, network, both, place)
    upright, mirrored = graph.split(maps["boundary"], 2)
    logits = graph("Add", upright, geometry.add_mirror(graph, mirrored))
    maps["boundary"] = graph("Sigmoid", graph("Mul", logits, graph.floats(0.5)))
    if settings.align == "reference":
        grid = geometry.add_ceil(graph, size, graph.integers(network.stride))
        first, axes = graph.integers(0, 0), graph.integers(2, 3)
        maps = {name: graph("Slice", each, first, grid, axes) for name, each in maps.items()}
    graph("Identity", maps["boundary"], output=BOUNDARY)
    return maps | {"boundary": BOUNDARY}


def add_walls(draft: _Draft, boundary: str) -> tuple[str, str]:
    """Affinities that boundaries leave, and what CAMs are multiplied by before the walk."""
    graph, walk = draft.at("affinity/"), draft.settings.walk
    add_boundary_affinity(
        draft.nodes,
        draft.constants,
        boundary=boundary,
        affinity=AFFINITY,
        prefix="affinity/paths/",
        radius=walk.radius,
        beta=walk.beta,
        borders=walk.borders,
    )
    return AFFINITY, graph("Sub", graph.floats(1), boundary)


def add_refinement(
    draft: _Draft, image: str, cam: str, probabilities: str, affinity: str, damping: str
) -> dict[str, str]:
    """CAMs of the classes in the image, walked and made into labels.

    Args:
        damping: (B, 1, h, w) that CAMs are multiplied by before the walk; empty: none.

    Only classes that some image of the batch contains are walked: `walk_scores` and
    `label_from_scores`. A class absent from one image of a batch has scores of 0 there, which
    never pass the background.
    """
    settings, graph = draft.settings, draft.at("refine/")
    _, size = geometry.add_image(graph, image, settings.layout)
    used = _used_classes(graph, probabilities, settings)
    indices = _union(graph, used, settings.num_classes)
    mask = graph("Unsqueeze", graph("Gather", used, indices, axis=1), graph.integers(2, 3))
    maps = graph("Mul", graph("Gather", cam, indices, axis=1), mask)
    grid = graph("Shape", affinity, start=2)
    planes = _planes_on_grid(graph, maps, size, grid, settings)
    graph("Identity", graph("Mul", planes, damping) if damping else planes, output=PLANES)
    walk = settings.walk
    add_walk(
        draft.nodes,
        draft.constants,
        scores=PLANES,
        affinity=affinity,
        walked=WALKED,
        prefix="refine/walk/",
        radius=walk.radius,
        steps=walk.steps,
        tolerance=walk.tolerance,
        borders=walk.borders,
    )
    walked = graph("Max", WALKED, graph.floats(0))
    stack = _stack(graph, walked, walk)
    full = geometry.add_to_full_size(graph, stack, size, settings.align)
    label, confidence = _winner(graph, full, indices)
    return {
        "label": label,
        "confidence": confidence,
        "scores": _all_scores(graph, stack, indices, settings.num_classes),
        "used_classes": used,
        "change": _change(graph, _stack(graph, planes, walk), stack),
    }


def _used_classes(graph: Builder, probabilities: str, settings: GraphSettings) -> str:
    """(B, C): 1 for classes that were named, or whose probability reaches its threshold.

    `present` is 0 or 1 where that is known; below 0 the threshold is that of the run, between 0 and
    1 it is the value itself.
    """
    present = graph("Expand", "present", graph("Shape", probabilities))
    named = graph("GreaterOrEqual", present, graph.floats(1))
    by_run = graph("GreaterOrEqual", probabilities, graph.floats(settings.class_threshold))
    by_run = graph("And", by_run, graph("Less", present, graph.floats(0)))
    by_value = graph("GreaterOrEqual", probabilities, present)
    by_value = graph("And", by_value, graph("Greater", present, graph.floats(0)))
    found = graph("Or", by_run, by_value)
    return graph("Cast", graph("Or", found, named), to=TensorProto.FLOAT)


def _union(graph: Builder, used: str, num_classes: int) -> str:
    """Indices of the classes in any image of the batch; class 0 where there is none."""
    most = graph("ReduceMax", used, graph.integers(0), keepdims=0)
    # Without any class one map of zeros is walked, because no tensor may be empty.
    is_none = graph("Less", graph("ReduceMax", most, graph.integers(0)), graph.floats(0.5))
    is_first = graph.constant(np.arange(num_classes) == 0)
    chosen = graph("Greater", most, graph.floats(0.5))
    chosen = graph("Or", chosen, graph("And", is_first, is_none))
    places = graph("NonZero", graph("Cast", chosen, to=TensorProto.FLOAT))
    return graph("Squeeze", places, graph.integers(0), output=CLASSES)


def _planes_on_grid(
    graph: Builder, maps: str, size: str, grid: str, settings: GraphSettings
) -> str:
    """What walks: class maps on the grid of the affinities, behind a background by the power
    rule."""
    walk = settings.walk
    if settings.align == "corners":
        planes = geometry.add_resize(graph, maps, grid, "corners")
        return _with_power(graph, planes, walk.alpha) if walk.background == "power" else planes
    if walk.maps_on_grid:
        return maps
    full = geometry.add_to_full_size(graph, maps, size, "reference")
    if walk.background == "power":
        full = _with_power(graph, full, walk.alpha)
    stride = graph("Slice", geometry.add_ceil(graph, size, grid), *_first_of(graph))
    blocks = geometry.add_block_mean(graph, full, size, stride)
    return geometry.add_resize(graph, blocks, grid, "reference")


def _first_of(graph: Builder) -> tuple[str, str]:
    return graph.integers(0), graph.integers(1)


def _with_power(graph: Builder, maps: str, alpha: float) -> str:
    """Behind the plane (1 - greatest score) ** alpha."""
    best = graph("ReduceMax", maps, graph.integers(1), keepdims=1)
    rest = graph("Clip", graph("Sub", graph.floats(1), best), graph.number(0.0), graph.number(1.0))
    return graph("Concat", graph("Pow", rest, graph.floats(alpha)), maps, axis=1)


def _stack(graph: Builder, planes: str, walk: WalkSettings) -> str:
    """(B, 1 + n, h, w) background and classes, of planes on the grid, walked or not."""
    return planes if walk.background == "power" else _with_constant(graph, planes, walk.threshold)


def _with_constant(graph: Builder, maps: str, threshold: float) -> str:
    """Scores divided by the greatest of their image, behind a plane of one value."""
    greatest = graph("ReduceMax", maps, graph.integers(1, 2, 3), keepdims=1)
    scores = graph("Div", maps, graph("Add", greatest, graph.floats(1e-5)))
    batch, _, height, width = graph.split(graph("Shape", maps), 4)
    shape = graph("Concat", batch, graph.integers(1), height, width, axis=0)
    return graph("Concat", graph("Expand", graph.floats(threshold), shape), scores, axis=1)


def _change(graph: Builder, before: str, after: str) -> str:
    """(B, 1) share of the cells that have another winner after the walk: `walk_change`."""
    winners = [graph("ArgMax", stack, axis=1, keepdims=0) for stack in (before, after)]
    differs = graph("Not", graph("Equal", *winners))
    counts = graph("Flatten", graph("Cast", differs, to=TensorProto.FLOAT), axis=1)
    return graph("ReduceMean", counts, graph.integers(1), keepdims=1)


def _winner(graph: Builder, planes: str, indices: str) -> tuple[str, str]:
    """(B, 1 + n, H, W) scores -> labels, and the winner's share of all scores there."""
    place = graph("ArgMax", planes, axis=1, keepdims=0)
    numbers = graph("Add", indices, graph.integers(1))
    labels = graph("Gather", graph("Concat", graph.integers(0), numbers, axis=0), place)
    best = graph("ReduceMax", planes, graph.integers(1), keepdims=0)
    total = graph("ReduceSum", planes, graph.integers(1), keepdims=0)
    share = graph("Div", best, graph("Max", total, graph.floats(1e-6)))
    return labels, share


def _all_scores(graph: Builder, stack: str, indices: str, num_classes: int) -> str:
    """(B, 1 + n, h, w) -> (B, 1 + C, h, w): absent classes have scores of 0."""
    numbers = graph("Concat", graph.integers(0), graph("Add", indices, graph.integers(1)), axis=0)
    rows = graph.constant(np.arange(num_classes + 1).reshape(-1, 1))
    is_place = graph("Equal", rows, graph("Unsqueeze", numbers, graph.integers(0)))
    selection = graph("Cast", is_place, to=TensorProto.FLOAT)  # (1 + C, 1 + n)
    batch, _, height, width = graph.split(graph("Shape", stack), 4)
    flat = graph("Reshape", stack, graph.integers(0, 0, -1))
    spread = graph("MatMul", selection, flat)
    shape = graph("Concat", batch, graph.integers(num_classes + 1), height, width, axis=0)
    return graph("Reshape", spread, shape)


def add_segmentation(draft: _Draft, image: str, network: NetworkGraph) -> dict[str, str]:
    """Logits averaged over scales and mirrors, and their softmax: `segment_image` without CRF."""
    settings, graph = draft.settings, draft.at("segmenter/")
    pixels, size = geometry.add_image(graph, image, settings.layout)
    total = ""
    for scale in settings.segmenter_scales:
        place = f"segmenter/scale_{scale:g}"
        scaled = _scaled_pixels(draft, pixels, size, scale, network, place)
        flip = settings.segmenter_flip
        logits = _mirrored_sum(draft, scaled, network, "logits", flip, place)
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


def _model(name: str, draft: _Draft, outputs: Mapping[str, str]) -> onnx.ModelProto:
    """A model of what the outputs need of a draft."""
    settings = draft.settings
    pairs = len(PairOffsets(settings.walk.radius))
    inputs, declared = graph_tensors(
        name,
        settings.layout,
        settings.num_classes,
        pairs,
        affinity_stage=settings.affinity_stage,
        outputs=outputs,
    )
    nodes = needed_nodes(draft.nodes, outputs.values())
    kinds = {"label": TensorProto.UINT8}
    nodes += [
        # The cast to uint8 comes last of all: TensorRT knows that type at outputs alone.
        helper.make_node("Cast", [value], [out], out, to=kinds[out])
        if out in kinds
        else helper.make_node("Identity", [value], [out], out)
        for out, value in outputs.items()
    ]
    nodes, constants = merge_equal(nodes, draft.constants, outputs)
    constants = needed_constants(constants, nodes)
    if any(value.name == "present" for value in inputs):
        constants.append(unknown_classes(settings.num_classes))
    graph = helper.make_graph(nodes, name, inputs, declared, constants)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="wsss"
    )
