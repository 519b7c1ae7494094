import math
from functools import lru_cache

import onnx
import reference
import torch
from all_pairs import all_pairs
from pytest import importorskip, mark, raises

from wsss.errors import ConfigError
from wsss.export.graphs.walk import add_affinity, add_walk, walk_model
from wsss.runtime.refine.feature_affinity import affinity_from_features
from wsss.runtime.refine.pairs import PairOffsets
from wsss.runtime.refine.random_walk import propagate

onnxruntime = importorskip("onnxruntime", reason="needs onnxruntime")

SIZES = [(1, 1), (1, 13), (11, 1), (2, 3), (3, 4), (5, 9), (12, 17)]
BORDERS = ["reference", "full"]
COUNTS = [(1, 1), (1, 3), (3, 1), (3, 3)]
"""(batch, maps)."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_scores(batch, maps, height, width, seed=1):
    return torch.rand(batch, maps, height, width, generator=generator(seed))


def natural_features(batch, channels, height, width, seed=5):
    """Smooth, with an edge: neighbours alike, halves unlike, affinities from 0.01 to 1."""
    features = torch.randn(batch, channels, height, width, generator=generator(seed))
    features = torch.nn.functional.avg_pool2d(features, 3, 1, 1) * 2
    features[:, : channels // 2, :, width // 2 :] += 3.0
    return features


def open_model(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@lru_cache(maxsize=32)
def session(**settings):
    return open_model(walk_model(**settings))


def run(opened, **inputs):
    (walked,) = opened.run(None, {name: values.numpy() for name, values in inputs.items()})
    return torch.from_numpy(walked)


def assert_close(found, expected, atol):
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=atol)


@mark.parametrize(("size", "borders", "steps"), all_pairs(SIZES, BORDERS, [0, 1, 2, 7, 256]))
def test_walk_equals_the_dense_power_and_propagate(size, borders, steps):
    opened = session(steps=steps, borders=borders)
    for batch, maps in COUNTS:
        affinity = reference.random_affinity(generator(), batch, *size, borders=borders).float()
        scores = random_scores(batch, maps, *size)
        walked = run(opened, scores=scores, affinity=affinity)
        dense = reference.walk_batch(scores, affinity, 5, steps)
        # The tolerance of the polynomial, then float32 rounding over up to 73 steps.
        assert_close(walked, dense, atol=1e-4 if steps == 256 else 1e-5)
        assert_close(walked, propagate(scores, affinity, steps=steps), atol=2e-5)


@mark.parametrize("borders", BORDERS)
@mark.parametrize("size", SIZES)
def test_walk_from_features_equals_the_dense_power_and_propagate(size, borders):
    opened = session(source="features", beta=4.0, borders=borders)
    for batch, maps in COUNTS:
        features = natural_features(batch, 7, *size)
        scores = random_scores(batch, maps, *size)
        affinity = affinity_from_features(features.double(), beta=4.0, borders=borders)
        walked = run(opened, scores=scores, features=features)
        assert_close(walked, reference.walk_batch(scores, affinity, 5, 256), atol=1e-4)
        assert_close(walked, propagate(scores.double(), affinity), atol=2e-5)


def affinity_model(borders="full", radius=5):
    nodes, constants = [], []
    settings = {"radius": radius, "beta": 2.5, "borders": borders}
    add_affinity(nodes, constants, features="deep/features", affinity="likeness", **settings)
    shape = ["batch", "any", "height", "width"]
    value = onnx.helper.make_tensor_value_info
    source = value("deep/features", onnx.TensorProto.FLOAT, shape)
    target = value("likeness", onnx.TensorProto.FLOAT, shape)
    graph = onnx.helper.make_graph(nodes, "affinity", [source], [target], constants)
    opsets = [onnx.helper.make_opsetid("", 20)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


@mark.parametrize("radius", [2, 5, 7])
@mark.parametrize("borders", BORDERS)
def test_affinity_from_features_equals_the_naive_loops(borders, radius):
    opened = open_model(affinity_model(borders, radius))
    for size in SIZES:
        features = natural_features(2, 5, *size)
        found = run(opened, **{"deep/features": features})
        for image, planes in zip(features, found, strict=True):
            distances = reference.distances(image, radius, borders)
            expected = torch.from_numpy(distances).mul(-2.5).exp()
            assert_close(planes, expected, atol=1e-6)
            assert torch.equal(planes == 0, expected == 0)


@mark.parametrize("radius", [2, 3, 6, 10])
def test_other_radii(radius):
    scores = random_scores(1, 2, 8, 14)
    affinity = reference.random_affinity(generator(), 1, 8, 14, radius=radius).float()
    walked = run(session(radius=radius, steps=40), scores=scores, affinity=affinity)
    assert_close(walked, reference.walk_batch(scores, affinity, radius, 40), atol=1e-4)


def test_one_session_serves_grids_of_any_size_again_and_again():
    opened = session()
    for size in [(47, 63), (1, 1), (20, 33), (47, 63), (8, 8)]:
        affinity = affinity_from_features(natural_features(1, 8, *size), beta=4.0)
        scores = random_scores(1, 3, *size)
        walked = run(opened, scores=scores, affinity=affinity)
        expected = propagate(scores.double(), affinity.double())
        assert_close(walked, expected, atol=2e-5)
        assert torch.equal(walked.argmax(1), expected.argmax(1))


@mark.parametrize("source", ["affinity", "features"])
def test_constants_are_a_fixed_point(source):
    features = natural_features(1, 6, 30, 41)
    given = {"features": features, "affinity": affinity_from_features(features, beta=8.0)}
    scores = torch.tensor([0.0, 0.3, 1.0]).view(1, 3, 1, 1).expand(1, 3, 30, 41)
    walked = run(session(source=source), scores=scores, **{source: given[source]})
    assert_close(walked, scores, atol=1e-5)
    assert bool((walked[:, 0] == 0).all())


def test_scores_do_not_pass_a_wall():
    features = torch.zeros(1, 2, 8, 12)
    features[..., 6:] = 1e4
    scores = torch.zeros(1, 1, 8, 12)
    scores[..., :2] = 1.0
    walked = run(session(source="features"), scores=scores, features=features)
    assert bool((walked[..., 6:] == 0).all())
    assert float(walked[..., :6].min()) > 0.2


@mark.parametrize("borders", BORDERS)
@mark.parametrize("stray", [0.7, math.nan])
def test_values_without_a_pair_are_not_read(stray, borders):
    affinity = reference.random_affinity(generator(), 2, 6, 7, borders=borders).float()
    dirty = torch.where(affinity == 0, stray, affinity)
    opened, scores = session(borders=borders), random_scores(2, 2, 6, 7)
    clean = run(opened, scores=scores, affinity=affinity)
    assert torch.equal(run(opened, scores=scores, affinity=dirty), clean)


def test_images_in_a_batch_do_not_touch():
    affinity = reference.random_affinity(generator(), 3, 6, 7).float()
    scores = random_scores(3, 2, 6, 7)
    scores[1] = math.nan
    walked = run(session(), scores=scores, affinity=affinity)
    for index in (0, 2):
        one = slice(index, index + 1)
        alone = run(session(), scores=scores[one], affinity=affinity[one])
        # onnxruntime adds up degrees in another order when the batch is larger.
        assert_close(walked[one], alone, atol=1e-5)


@mark.parametrize("source", ["affinity", "features"])
@mark.parametrize("steps", [0, 1, 7, 256])
def test_model_is_small_valid_and_always_the_same(steps, source):
    model = walk_model(steps=steps, source=source)
    onnx.checker.check_model(model, full_check=True)
    assert len(model.SerializeToString()) < 100_000
    assert model.SerializeToString() == walk_model(steps=steps, source=source).SerializeToString()
    assert model.ir_version <= 10
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    loops = [node for node in model.graph.node if node.op_type == "Loop"]
    assert len(loops) == (steps > 1)


def axes(value):
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_axes_have_names():
    for source, planes in (("affinity", len(PairOffsets(5))), ("features", "channels")):
        graph = walk_model(source=source).graph
        names = [*graph.input, *graph.output]
        assert [value.name for value in names] == ["scores", source, "walked"]
        assert axes(graph.input[0]) == ["batch", "maps", "height", "width"]
        assert axes(graph.input[1]) == ["batch", planes, "height", "width"]
        assert axes(graph.output[0]) == ["batch", "maps", "height", "width"]


def test_two_walks_fit_into_one_graph():
    model = walk_model(steps=2)
    graph = model.graph
    nodes, constants = list(graph.node), list(graph.initializer)
    again = {"scores": "walked", "affinity": "affinity", "walked": "twice", "prefix": "again/"}
    add_walk(nodes, constants, steps=5, **again)
    output = onnx.helper.make_tensor_value_info("twice", onnx.TensorProto.FLOAT, [None] * 4)
    both = onnx.helper.make_graph(nodes, "both", list(graph.input), [output], constants)
    model.graph.CopyFrom(both)
    onnx.checker.check_model(model, full_check=True)
    affinity = reference.random_affinity(generator(), 1, 6, 7).float()
    scores = random_scores(1, 2, 6, 7)
    found = run(open_model(model), scores=scores, affinity=affinity)
    assert_close(found, propagate(scores, affinity, steps=7), atol=1e-5)


@mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": 1}, "`radius` is 1"),
        ({"steps": -1}, "`steps` is -1"),
        ({"steps": 2.0}, "`steps` is 2.0"),
        ({"tolerance": -1e-3}, "`tolerance` is -0.001"),
        ({"tolerance": math.nan}, "`tolerance` is nan"),
        ({"source": "edges"}, "unknown `source` 'edges': choose one of affinity, features"),
        ({"borders": "psa"}, "unknown `borders` 'psa': choose one of reference, full"),
        ({"borders": "psa", "steps": 0}, "unknown `borders` 'psa'"),
        ({"source": "features", "beta": 0.0}, "`beta` is 0.0"),
        ({"source": "features", "beta": math.inf}, "`beta` is inf"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with raises(ConfigError, match=message):
        walk_model(**settings)
