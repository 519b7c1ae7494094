import itertools
import math

import numpy as np
import torch
from crf_cases import (
    PUBLISHED,
    SIZES,
    drawn_photograph,
    random_features,
    random_image,
    random_unary,
    same_labels,
    smooth_scores,
)
from pytest import approx, mark, raises, skip

from wsss.errors import ConfigError, DataError, ShapeError
from wsss.runtime.refine import dense_crf
from wsss.runtime.refine.dense_crf import (
    CrfSettings,
    DenseCrf,
    unary_from_labels,
    unary_from_logits,
    unary_from_scores,
)
from wsss.runtime.refine.permutohedral import Lattice


def simplex(feature):
    """Vertices around a point, coordinates without the last, and their weights, by remainder."""
    size = len(feature) + 1
    scaled = [
        value * math.sqrt(2 / 3) * size / math.sqrt((axis + 1) * (axis + 2))
        for axis, value in enumerate(feature)
    ]
    elevated = [
        sum(scaled[axis:]) - (axis * scaled[axis - 1] if axis else 0) for axis in range(size)
    ]
    origin = [size * round(value / size) for value in elevated]
    offset = [value - start for value, start in zip(elevated, origin, strict=True)]
    order = sorted(range(size), key=lambda axis: (-offset[axis], axis))
    excess = sum(origin) // size
    rank = [order.index(axis) + excess for axis in range(size)]
    for axis in range(size):
        step = size * ((rank[axis] < 0) - (rank[axis] >= size))
        rank[axis] += step
        origin[axis] += step
    by_rank = {rank[axis]: (elevated[axis] - origin[axis]) / size for axis in range(size)}
    weights = [1 + by_rank[size - 1] - by_rank[0]]
    weights += [by_rank[size - 1 - r] - by_rank[size - r] for r in range(1, size)]
    vertices = [
        tuple(origin[axis] + r - size * (rank[axis] + r >= size) for axis in range(size - 1))
        for r in range(size)
    ]
    return vertices, weights


def dense_filter(features):
    """(N, d) -> (N, N) float64: slice @ blur @ splat on a lattice of dictionaries."""
    num_points, num_axes = features.shape
    filled = [list(map(float, feature)) for feature in features]
    filled += [[0.0] * num_axes] * (-num_points % 4)
    simplices = [simplex(feature) for feature in filled]
    number = {}
    for vertex in itertools.chain.from_iterable(vertices for vertices, _ in simplices):
        number.setdefault(vertex, len(number))
    splat = np.zeros((len(number), num_points))
    for point, (vertices, weights) in enumerate(simplices[:num_points]):
        for vertex, weight in zip(vertices, weights, strict=True):
            splat[number[vertex], point] += weight
    result = splat
    for axis in range(num_axes + 1):
        blur = np.eye(len(number))
        for vertex, row in number.items():
            for sign in (-1, 1):
                near = [value + sign for value in vertex]
                if axis < num_axes:
                    near[axis] -= sign * (num_axes + 1)
                if tuple(near) in number:
                    blur[row, number[tuple(near)]] += 0.5
        result = blur @ result
    return splat.T @ result / (1 + 2.0**-num_axes)


def dense_mean_field(image, unary, settings):
    """Mean field with N x N float64 kernels; features are rounded as float32 like everywhere."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width].reshape(2, -1).astype(np.float32)
    near = np.stack([columns, rows], 1)
    alike = np.concatenate(
        [
            near / np.float32(settings.bilateral_sxy),
            image.reshape(-1, 3).astype(np.float32) / np.float32(settings.bilateral_srgb),
        ],
        axis=1,
    )
    message = np.zeros((height * width, height * width))
    for features, compat in (
        (near / np.float32(settings.gaussian_sxy), settings.gaussian_compat),
        (alike, settings.bilateral_compat),
    ):
        kernel = dense_filter(features)
        scale = 1 / np.sqrt(kernel.sum(1) + 1e-20)
        message += compat * scale[:, None] * kernel * scale

    def softmax(energy):
        powers = np.exp(energy - energy.max(0))
        return powers / powers.sum(0)

    flat = unary.double().numpy().reshape(len(unary), -1)
    probabilities = softmax(-flat)
    for _ in range(settings.iterations):
        probabilities = softmax(-flat + probabilities @ message.T)
    return torch.from_numpy(probabilities.reshape(unary.shape))


@mark.parametrize("num_axes", [1, 2, 3, 5])
@mark.parametrize("num_points", [1, 2, 3, 4, 5, 40])
def test_filter_equals_the_dense_lattice(num_points, num_axes):
    features = random_features(num_points, num_axes, spread=0.7)
    expected = dense_filter(features.numpy())
    values = random_features(num_points, 3)
    filtered = Lattice(features).filter(values)
    torch.testing.assert_close(
        filtered.double(), torch.from_numpy(expected) @ values.double(), rtol=1e-5, atol=1e-5
    )


def test_wide_lattices_are_numbered_with_64_bits():
    # Five axes of several hundred cells each do not fit 32 bits.
    features = random_features(40, 5, spread=200)
    features[20:] = features[:20] + 0.1
    expected = torch.from_numpy(dense_filter(features.numpy()))
    filtered = Lattice(features).filter(torch.eye(40))
    torch.testing.assert_close(filtered.double(), expected, rtol=0, atol=1e-4)


@mark.parametrize("num_points", [4, 256, 260, 2000])
def test_equal_points_add_up(num_points):
    # 256 is where the sum at a vertex is split.
    feature = random_features(1, 5).expand(num_points, 5)
    filtered = Lattice(feature).filter(torch.ones(num_points, 1))
    single = Lattice(feature[:4]).filter(torch.ones(4, 1))[0] / 4
    torch.testing.assert_close(
        filtered, (single * num_points).expand_as(filtered), rtol=1e-5, atol=0
    )


def test_normalised_filter_keeps_the_root_of_its_row_sums():
    features = random_features(90, 3)
    sums = Lattice(features).filter(torch.ones(90, 1))
    lattice = Lattice(features)
    lattice.normalise()
    torch.testing.assert_close(lattice.filter(sums.sqrt()), sums.sqrt())


def test_filter_resembles_a_gaussian():
    grid = torch.linspace(-6, 6, 61)
    features = torch.cartesian_prod(grid, grid)
    impulse = (features.abs() < 0.01).all(1, keepdim=True).float()
    response = Lattice(features).filter(impulse)[:, 0]
    gaussian = (-features.square().sum(1) / 2).exp()
    assert float(torch.cosine_similarity(response, gaussian, dim=0)) == approx(1, abs=0.005)


@mark.parametrize("spread", [1e4, 1e9, math.inf])
def test_points_too_far_apart_are_refused(spread):
    features = torch.eye(5) * spread
    with raises(ConfigError, match="cells of the filter's lattice"):
        Lattice(features)


@mark.parametrize("shape", [(0, 2), (3, 0), (3,)])
def test_lattice_needs_points(shape):
    with raises(ShapeError, match="expected \\(N, d\\)"):
        Lattice(torch.zeros(shape))


@mark.parametrize("labels", [1, 2, 5, 17])
@mark.parametrize("size", SIZES)
def test_mean_field_equals_the_dense_kernels(size, labels):
    settings = CrfSettings(3, 1.5, 2.0, 6.0, 40.0, 5.0)
    image, unary = random_image(*size), random_unary(labels, *size)
    refined = DenseCrf(image, settings).refine(unary)
    assert refined.dtype == torch.float32
    expected = dense_mean_field(image, unary, settings)
    torch.testing.assert_close(refined.double(), expected, rtol=0, atol=1e-5)


@mark.parametrize("settings", PUBLISHED.values(), ids=PUBLISHED)
def test_published_settings_equal_the_dense_kernels(settings):
    image, unary = drawn_photograph(9, 13), random_unary(3, 9, 13)
    refined = DenseCrf(image, settings).refine(unary)
    expected = dense_mean_field(image, unary, settings)
    torch.testing.assert_close(refined.double(), expected, rtol=0, atol=1e-4)


def test_without_kernels_only_the_softmax_is_left():
    image, unary = random_image(3, 5), random_unary(4, 3, 5)
    expected = (-unary).softmax(0)
    for settings in (CrfSettings(iterations=0), CrfSettings(4, 3, 0, 80, 13, 0)):
        torch.testing.assert_close(DenseCrf(image, settings).refine(unary), expected)


def test_labels_stop_at_an_edge_in_colour():
    # Left half black, right half white; a weak unary with one wrong column on each side.
    image = np.zeros((12, 20, 3), np.uint8)
    image[:, 10:] = 255
    score = torch.full((12, 20), 0.4)
    score[:, 10:] = 0.6
    score[:, 3], score[:, 15] = 0.55, 0.45
    refined = DenseCrf(image, CrfSettings()).refine(
        unary_from_scores(torch.stack([1 - score, score]))
    )
    expected = torch.arange(20).ge(10).long().expand(12, 20)
    assert torch.equal(refined.argmax(0), expected)


@mark.parametrize("values", [1, 2**22])
@mark.parametrize("counts", [[2], [3, 3], [1, 4, 2], [18, 2, 18]])
def test_refine_many_equals_one_by_one(counts, values, monkeypatch):
    monkeypatch.setattr(dense_crf, "_CPU_VALUES", values)
    crf = DenseCrf(random_image(11, 14), CrfSettings(bilateral_srgb=60))
    unaries = [random_unary(count, 11, 14, seed) for seed, count in enumerate(counts)]
    together = crf.refine_many(unaries)
    assert [len(planes) for planes in together] == counts
    for planes, unary in zip(together, unaries, strict=True):
        torch.testing.assert_close(planes, crf.refine(unary), rtol=0, atol=1e-6)


def test_refine_many_of_nothing_is_nothing():
    assert DenseCrf(random_image(2, 2), CrfSettings()).refine_many([]) == []


def test_results_repeat_bit_by_bit_and_leave_the_unary_alone():
    image, unary = drawn_photograph(40, 50), random_unary(3, 40, 50)
    before = unary.clone()
    first = DenseCrf(image, CrfSettings()).refine(unary)
    dense_crf._smoothness_lattice.cache_clear()
    assert torch.equal(DenseCrf(image, CrfSettings()).refine(unary), first)
    assert torch.equal(unary, before)
    torch.testing.assert_close(first.sum(0), torch.ones(40, 50))


@mark.gpu
def test_cuda_equals_cpu():
    if not torch.cuda.is_available():
        skip("no CUDA device")
    image = drawn_photograph(121, 187)
    unaries = [unary_from_scores(smooth_scores(count, 121, 187)) for count in (3, 3, 21)]
    crf = DenseCrf(image, CrfSettings(), device="cuda")
    refined = crf.refine_many(unaries)
    for planes, repeated in zip(refined, crf.refine_many(unaries), strict=True):
        assert torch.equal(planes, repeated)
    for planes, expected in zip(
        refined, DenseCrf(image, CrfSettings()).refine_many(unaries), strict=True
    ):
        assert same_labels(planes.cpu(), expected) >= 0.9995


def test_unary_from_scores_is_the_clipped_logarithm():
    scores = torch.tensor([0.0, 1e-7, 1e-5, 0.3, 1.0, 1.5]).view(1, 2, 3)
    unary = unary_from_scores(scores)
    for value, score in zip(unary.flatten().tolist(), scores.flatten().tolist(), strict=True):
        assert value == approx(-math.log(min(max(score, 1e-5), 1)), abs=1e-6)


@mark.parametrize("num_labels", [1, 2, 5])
def test_unary_from_labels_shares_the_doubt(num_labels):
    labels = torch.arange(6).view(2, 3) % num_labels
    unary = unary_from_labels(labels, num_labels, 0.7)
    assert unary.shape == (num_labels, 2, 3)
    for label, row, column in itertools.product(range(num_labels), range(2), range(3)):
        given = labels[row, column] == label
        share = 0.7 if given else 0.3 / (num_labels - 1)
        assert float(unary[label, row, column]) == approx(-math.log(share))


def test_unary_from_logits_changes_the_sign():
    logits = torch.tensor([-1.5, 0.0, 2.0]).view(3, 1, 1)
    assert torch.equal(unary_from_logits(logits).flatten(), torch.tensor([1.5, 0.0, -2.0]))


@mark.parametrize("certainty", [0.0, 1.0, -0.1, math.nan])
def test_certainty_lies_between_0_and_1(certainty):
    with raises(ConfigError, match="`certainty` is"):
        unary_from_labels(torch.zeros(1, 1, dtype=torch.int64), 2, certainty)


@mark.parametrize("label", [-1, 2, 255])
def test_labels_without_a_plane_are_refused(label):
    with raises(DataError, match="expected 0 to 1"):
        unary_from_labels(torch.tensor([[0, label]]), 2, 0.7)


@mark.parametrize(
    ("name", "value"),
    [
        ("iterations", -1),
        ("gaussian_sxy", 0.0),
        ("bilateral_sxy", -1.0),
        ("bilateral_srgb", math.nan),
        ("gaussian_compat", -3.0),
        ("bilateral_compat", math.nan),
    ],
)
def test_settings_are_checked(name, value):
    with raises(ConfigError, match=f"`{name}` is"):
        CrfSettings(**{name: value})


@mark.parametrize("shape", [(4, 5), (4, 5, 4), (0, 5, 3)])
def test_images_have_three_planes(shape):
    with raises(ShapeError, match="expected \\(H, W, 3\\)"):
        DenseCrf(np.zeros(shape, np.uint8), CrfSettings())


def test_images_are_uint8():
    with raises(DataError, match="float32, expected uint8"):
        DenseCrf(np.zeros((2, 2, 3), np.float32), CrfSettings())


def test_kernels_too_narrow_for_the_image_are_refused():
    with raises(ConfigError, match="take a wider kernel"):
        DenseCrf(random_image(2, 9), CrfSettings(bilateral_sxy=1e-5))


@mark.parametrize("shape", [(2, 4, 4), (0, 4, 5), (4, 5)])
def test_unaries_fit_the_image(shape):
    crf = DenseCrf(random_image(4, 5), CrfSettings())
    with raises(ShapeError, match="expected \\(L, 4, 5\\)"):
        crf.refine(torch.zeros(shape))


@mark.parametrize("value", [math.nan, math.inf])
def test_unaries_are_finite(value):
    crf = DenseCrf(random_image(1, 2), CrfSettings())
    with raises(DataError, match="NaN or infinity"):
        crf.refine(torch.tensor([[[0.0, value]]]))
