import math

import reference
import torch
from all_pairs import all_pairs
from pytest import approx, mark, raises

from wsss.errors import ConfigError, DataError, ShapeError
from wsss.runtime.refine.feature_affinity import affinity_from_features
from wsss.runtime.refine.pairs import PairOffsets
from wsss.runtime.refine.random_walk import chebyshev_coefficients, chebyshev_degree, propagate

SIZES = [(1, 1), (1, 13), (11, 1), (2, 3), (4, 4), (5, 9), (12, 17)]
BORDERS = ["reference", "full"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_scores(batch, maps, height, width, seed=1, dtype=torch.float64):
    return torch.rand(batch, maps, height, width, generator=generator(seed), dtype=dtype)


def pad(values, height, width):
    return torch.nn.functional.pad(
        values, (0, width - values.shape[-1], 0, height - values.shape[-2])
    )


@mark.parametrize(("size", "borders", "steps"), all_pairs(SIZES, BORDERS, [0, 1, 2, 7, 256]))
def test_float64_walk_equals_the_dense_power(size, borders, steps):
    affinity = reference.random_affinity(generator(), 2, *size, borders=borders)
    scores = random_scores(2, 3, *size)
    expected = reference.walk_batch(scores, affinity, 5, steps)
    power = propagate(scores, affinity, steps=steps, method="power")
    torch.testing.assert_close(power, expected, rtol=0, atol=1e-12)
    exact = propagate(scores, affinity, steps=steps, tolerance=1e-12)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-11)


@mark.parametrize("method", ["power", "chebyshev"])
@mark.parametrize("borders", BORDERS)
def test_float32_walk_on_natural_affinities_equals_the_dense_power(borders, method):
    # Smooth features with edges: neighbours alike, halves unlike, affinities from 0.01 to 1.
    features = torch.randn(2, 32, 19, 23, generator=generator(5))
    features = torch.nn.functional.avg_pool2d(features, 3, 1, 1) * 2
    features[:, :16, :, 11:] += 3.0
    affinity = affinity_from_features(features, beta=4.0, borders=borders)
    scores = random_scores(2, 4, 19, 23, dtype=torch.float32)
    walked = propagate(scores, affinity, method=method)
    expected = reference.walk_batch(scores, affinity, 5, 256)
    assert walked.dtype == torch.float32
    torch.testing.assert_close(walked.double(), expected, rtol=0, atol=1e-4)
    assert torch.equal(walked.argmax(1), expected.argmax(1))


@mark.parametrize("radius", [2, 3, 10])
def test_other_radii(radius):
    affinity = reference.random_affinity(generator(), 1, 8, 14, radius=radius)
    scores = random_scores(1, 2, 8, 14)
    walked = propagate(scores, affinity, radius=radius, steps=40, tolerance=1e-10)
    expected = reference.walk_batch(scores, affinity, radius, 40)
    torch.testing.assert_close(walked, expected, rtol=0, atol=1e-10)


@mark.parametrize("tolerance", [1e-1, 1e-2, 1e-4, 1e-7])
@mark.parametrize("steps", [16, 63, 256, 1024])
@mark.parametrize("kind", ["random", "sparse", "weak block"])
def test_tolerance_is_honoured_for_the_worst_scores(kind, steps, tolerance):
    height, width = 10, 13
    affinity = reference.random_affinity(generator(2), 1, height, width)
    if kind == "sparse":
        affinity = (affinity > 0.95).double()
    if kind == "weak block":
        ones = reference.random_affinity(generator(2), 1, height, width).sign()
        affinity = torch.where(torch.arange(width) < 5, 0.003 * ones, ones)
    # Every impulse at once: the map of (T^n - p(T)), whose rows give the worst scores in [0, 1].
    cells = height * width
    impulses = torch.eye(cells, dtype=torch.float64).view(1, cells, height, width)
    exact = propagate(impulses, affinity, steps=steps, method="power")
    error = (propagate(impulses, affinity, steps=steps, tolerance=tolerance) - exact)[0]
    assert chebyshev_degree(steps, tolerance) < steps or float(error.abs().max()) == 0
    assert float(error.clamp(min=0).sum(0).max()) <= tolerance
    assert float(error.clamp(max=0).sum(0).min()) >= -tolerance


@mark.parametrize("steps", [0, 1, 2, 15, 16, 256])
def test_coefficients_are_those_of_the_power(steps):
    coefficients = chebyshev_coefficients(steps, 0.0)
    angle = torch.linspace(0, math.pi, 50, dtype=torch.float64)
    total = sum(c * torch.cos(j * angle) for j, c in enumerate(coefficients))
    torch.testing.assert_close(total, angle.cos() ** steps, rtol=0, atol=1e-13)


@mark.parametrize("steps", [1, 7, 256, 100_000])
@mark.parametrize("tolerance", [0.0, 1e-4, 0.5])
def test_kept_coefficients_sum_to_one(steps, tolerance):
    coefficients = chebyshev_coefficients(steps, tolerance)
    assert math.fsum(coefficients) == approx(1, abs=1e-14)
    assert min(coefficients) >= 0


def test_degree_grows_with_precision_and_never_passes_the_steps():
    degrees = [chebyshev_degree(256, tolerance) for tolerance in (1e-2, 1e-3, 1e-4, 1e-5, 0.0)]
    assert degrees == sorted(degrees)
    assert 64 <= chebyshev_degree(256, 1e-4) <= 80
    assert chebyshev_degree(256, 0.0) <= 256
    assert chebyshev_degree(8, 1e-4) == 8
    assert chebyshev_degree(0, 1e-4) == 0
    assert chebyshev_degree(256, 1e-4, radius=10) >= chebyshev_degree(256, 1e-4)


@mark.parametrize("method", ["power", "chebyshev"])
@mark.parametrize("borders", BORDERS)
def test_constants_stay_constant(borders, method):
    affinity = reference.random_affinity(generator(), 1, 9, 12, borders=borders)
    scores = torch.tensor([0.0, 0.3, 1.0]).view(1, 3, 1, 1).expand(1, 3, 9, 12)
    walked = propagate(scores, affinity.float(), method=method)
    torch.testing.assert_close(walked, scores, rtol=0, atol=1e-5)


def test_the_dense_matrix_has_columns_of_sum_one_and_so_has_the_walk():
    affinity = reference.random_affinity(generator(), 1, 5, 6)
    impulses = torch.eye(30, dtype=torch.float64).view(1, 30, 5, 6)
    step = propagate(impulses, affinity, steps=1).view(30, 30)
    torch.testing.assert_close(step.sum(0), torch.ones(30, dtype=torch.float64))
    dense = reference.transition_matrix(affinity[0], 5)
    torch.testing.assert_close(step, torch.from_numpy(dense))


@mark.parametrize("method", ["power", "chebyshev"])
def test_scores_do_not_pass_a_wall(method):
    features = torch.zeros(1, 2, 8, 12)
    features[..., 6:] = 1e4
    scores = torch.zeros(1, 1, 8, 12)
    scores[..., :2] = 1.0
    walked = propagate(scores, affinity_from_features(features), method=method)
    assert bool((walked[..., 6:] == 0).all())
    assert float(walked[..., :6].min()) > 0.2


@mark.parametrize("method", ["power", "chebyshev"])
def test_images_in_a_batch_do_not_touch(method):
    batch, height, width = 40, 30, 41  # several micro-batches on a CPU
    affinity = torch.rand(batch, 34, height, width, generator=generator())
    scores = random_scores(batch, 2, height, width, dtype=torch.float32)
    together = propagate(scores, affinity, steps=80, method=method)
    for index in (0, 17, 39):
        one = slice(index, index + 1)
        alone = propagate(scores[one], affinity[one], steps=80, method=method)
        torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-6)
    flipped = propagate(scores.flip(0), affinity.flip(0), steps=80, method=method)
    torch.testing.assert_close(flipped.flip(0), together, rtol=0, atol=1e-6)


@mark.parametrize("method", ["power", "chebyshev"])
def test_padding_with_zero_affinity_changes_nothing(method):
    sizes = [(9, 14), (12, 10), (1, 1), (3, 16)]
    affinities = [reference.random_affinity(generator(s), 1, *size) for s, size in enumerate(sizes)]
    scores = [random_scores(1, 2, *size, seed=10 + s) for s, size in enumerate(sizes)]
    together = propagate(
        torch.cat([pad(s, 12, 16) for s in scores]),
        torch.cat([pad(a, 12, 16) for a in affinities]),
        method=method,
    )
    for index, (height, width) in enumerate(sizes):
        alone = propagate(scores[index], affinities[index], method=method)
        found = together[index : index + 1, :, :height, :width]
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-12)
        outside = together[index].clone()
        outside[:, :height, :width] = 0
        assert float(outside.abs().max()) <= 1e-12


def test_pairs_that_leave_the_grid_are_not_read():
    affinity = reference.random_affinity(generator(), 1, 6, 7)
    stray = torch.where(affinity == 0, 0.7, affinity)
    scores = random_scores(1, 2, 6, 7)
    assert torch.equal(propagate(scores, stray), propagate(scores, affinity))


def test_the_input_is_left_as_it_was():
    affinity = reference.random_affinity(generator(), 1, 6, 7)
    scores = random_scores(1, 2, 6, 7)
    kept_scores, kept_affinity = scores.clone(), affinity.clone()
    for steps in (0, 1, 256):
        propagate(scores, affinity, steps=steps).add_(1)
    assert torch.equal(scores, kept_scores) and torch.equal(affinity, kept_affinity)


@mark.parametrize("shape", [(0, 3), (2, 0)])
def test_nothing_to_walk(shape):
    scores = torch.zeros(*shape, 6, 7)
    assert propagate(scores, torch.zeros(shape[0], 34, 6, 7)).shape == scores.shape


@mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_walks_in_float32(dtype):
    scores = random_scores(1, 2, 6, 7, dtype=torch.float32).to(dtype)
    affinity = reference.random_affinity(generator(), 1, 6, 7).to(dtype)
    walked = propagate(scores, affinity)
    assert torch.equal(walked, propagate(scores.float(), affinity.float()))


def test_wrong_input_is_refused():
    scores = torch.rand(2, 3, 6, 7, generator=generator())
    affinity = torch.rand(2, 34, 6, 7, generator=generator())
    with raises(ShapeError, match=r"`scores` are \(3, 6, 7\)"):
        propagate(scores[0], affinity)
    with raises(ShapeError, match=r"expected \(2, 152, 6, 7\).*radius 10"):
        propagate(scores, affinity, radius=10)
    for wrong in (affinity[:1], affinity[..., :6], affinity[:, :33], affinity[0]):
        with raises(ShapeError, match="`affinity` is"):
            propagate(scores, wrong)
    for value in (math.nan, -0.01, 1.01, math.inf):
        broken = affinity.clone()
        broken[1, 20, 1, 3] = value
        with raises(DataError, match="`affinity` spans"):
            propagate(scores, broken)
    for value in (math.nan, math.inf):
        broken = scores.clone()
        broken[1, 2, 5, 6] = value
        with raises(DataError, match="`scores` hold NaN"):
            propagate(broken, affinity)
    with raises(DataError, match="int64"):
        propagate(scores.long(), affinity)
    for steps in (-1, 2.0, True):
        with raises(ConfigError, match="`steps`"):
            propagate(scores, affinity, steps=steps)
    for tolerance in (-1e-3, math.nan):
        with raises(ConfigError, match="`tolerance`"):
            propagate(scores, affinity, tolerance=tolerance)
    with raises(ConfigError, match="unknown `method` 'dense'"):
        propagate(scores, affinity, method="dense")


def test_rounding_above_one_is_taken():
    affinity = torch.full((1, len(PairOffsets(5)), 4, 4), 1 + 1e-6)
    assert bool(propagate(torch.ones(1, 1, 4, 4), affinity).isfinite().all())
