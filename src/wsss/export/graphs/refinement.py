"""The box of a graph that makes labels of CAMs and affinities: classes, walk, background, argmax.

Source: `runtime/refine/pseudo_labels.py`, against which `parity.py` measures it.
"""

import numpy as np
from onnx import TensorProto

from ...runtime.refine.pseudo_labels import WalkSettings
from . import geometry
from .builder import Builder
from .graph_context import GraphContext, GraphSettings
from .walk import add_walk

PLANES, WALKED = "refine/planes", "refine/walked"
"""What walks, and what comes of it."""
CLASSES = "refine/classes"
"""Indices of the classes that walk: those in the batch, or any more of them."""


def add_refinement(
    context: GraphContext, image: str, cam: str, probabilities: str, affinity: str, damping: str
) -> dict[str, str]:
    """CAMs of the classes in the image, walked and made into labels.

    Args:
        damping: (B, 1, h, w) that CAMs are multiplied by before the walk; empty: none.

    Only classes that some image of the batch contains are walked: `walk_scores` and
    `label_from_scores`. A class absent from one image of a batch has scores of 0 there, which
    never pass the background.
    """
    settings, graph = context.settings, context.at("refine/")
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
        context.nodes,
        context.constants,
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
