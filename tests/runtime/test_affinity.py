import reference
import torch
from all_pairs import all_pairs
from pytest import approx, importorskip, mark, raises

from wsss.errors import ConfigError, DataError, ShapeError
from wsss.runtime.refine import feature_affinity as affinity
from wsss.runtime.refine.feature_affinity import (
    affinity_from_cosine,
    affinity_from_features,
    pair_distances,
    pair_labels,
)
from wsss.runtime.refine.pairs import PairOffsets, is_empty, shifted

SIZES = [(1, 1), (1, 7), (9, 1), (3, 4), (5, 5), (5, 9), (6, 10), (13, 11)]
BORDERS = ["reference", "full"]


def random_features(batch, channels, height, width, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=dtype)


@mark.parametrize(("radius", "count"), [(2, 4), (3, 12), (5, 34), (10, 152)])
def test_offsets_are_the_published_half_disc(radius, count):
    offsets = PairOffsets(radius).offsets
    assert len(offsets) == len(PairOffsets(radius)) == count
    assert list(offsets) == reference.half_disc(radius)
    assert offsets[: radius - 1] == tuple((0, dx) for dx in range(1, radius))
    mirrored = {(-dy, -dx) for dy, dx in offsets}
    assert not mirrored & set(offsets)


@mark.parametrize(("size", "borders", "radius"), all_pairs(SIZES, BORDERS, [2, 5]))
def test_pairs_equal_the_naive_enumeration(size, borders, radius):
    pairs = PairOffsets(radius)
    found = set()
    for plane, offset in enumerate(pairs.offsets):
        region = pairs.from_cells(offset, size, borders)
        if is_empty(region):
            continue
        from_rows, from_columns = (range(s.start, s.stop) for s in region)
        to_rows, to_columns = (range(s.start, s.stop) for s in shifted(region, offset))
        for row, to_row in zip(from_rows, to_rows, strict=True):
            for column, to_column in zip(from_columns, to_columns, strict=True):
                found.add((plane, (row, column), (to_row, to_column)))
    assert found == set(reference.pairs_of_grid(*size, radius, borders))


def test_reference_borders_leave_the_corners_alone_as_published():
    # 47 x 63 cells: 43 * 55 from-cells, each with all 34 partners.
    assert len(reference.pairs_of_grid(47, 63, 5, "reference")) == 43 * 55 * 34
    labels = torch.zeros(1, 47, 63, dtype=torch.long)
    assert (pair_labels(labels, borders="reference") == 0).sum() == 43 * 55 * 34


@mark.parametrize(("size", "borders", "radius"), all_pairs(SIZES, BORDERS, [2, 5]))
def test_affinity_equals_naive_loops(size, borders, radius):
    features = random_features(2, 6, *size)
    affinity = affinity_from_features(features, radius=radius, beta=3.0, borders=borders)
    for image, planes in zip(features, affinity, strict=True):
        expected = torch.exp(-3.0 * torch.from_numpy(reference.distances(image, radius, borders)))
        torch.testing.assert_close(planes.double(), expected, rtol=1e-5, atol=1e-7)
        assert bool((planes[expected == 0] == 0).all())


def test_blocks_of_rows_leave_no_seam():
    # 700 channels x 33 columns: about seven rows a block.
    features = random_features(1, 700, 30, 33, dtype=torch.float64)
    expected = reference.distances(features[0], 3, "full")
    found = pair_distances(features, radius=3, borders="full")[0]
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-12, atol=0)


@mark.parametrize("borders", BORDERS)
def test_affinity_does_not_depend_on_the_batch(borders):
    features = random_features(4, 8, 12, 14)
    together = affinity_from_features(features, borders=borders)
    for index in range(4):
        alone = affinity_from_features(features[index : index + 1], borders=borders)
        assert torch.equal(together[index : index + 1], alone)
    assert torch.equal(affinity_from_features(features.flip(0), borders=borders), together.flip(0))


def test_equal_features_have_affinity_one_and_a_wall_has_almost_none():
    features = torch.zeros(1, 4, 6, 9)
    features[..., 4] = 50.0
    affinity = affinity_from_features(features, borders="full")
    right = PairOffsets(5).offsets.index((0, 1))
    assert affinity[0, right, 0].tolist() == approx([1, 1, 1, 0, 0, 1, 1, 1, 0], abs=1e-6)


@mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_float32(dtype):
    features = random_features(1, 16, 7, 8).to(dtype)
    affinity = affinity_from_features(features)
    assert affinity.dtype == torch.float32
    assert torch.equal(affinity, affinity_from_features(features.float()))
    features.requires_grad_()
    distances = pair_distances(features, borders="full")
    torch.exp(-distances).sum().backward()
    assert features.grad is not None and features.grad.dtype == dtype


@mark.parametrize("borders", BORDERS)
@mark.parametrize("size", [(1, 1), (3, 2), (4, 7)])
def test_distance_gradient_is_right(size, borders):
    features = random_features(2, 2, *size, dtype=torch.float64).requires_grad_()

    def affinity(values):
        return torch.exp(-pair_distances(values, radius=3, borders=borders))

    # Ties, where the derivative jumps, do not occur in random numbers.
    assert torch.autograd.gradcheck(affinity, (features,), eps=1e-7, atol=1e-6)


def test_distance_gradient_equals_autograd_through_shifts():
    features = random_features(2, 5, 9, 12, dtype=torch.float64).requires_grad_()
    weight = random_features(2, 34, 9, 12, seed=1, dtype=torch.float64)
    (torch.exp(-pair_distances(features, borders="full")) * weight).sum().backward()
    found, features.grad = features.grad, None
    total = features.new_zeros(())
    for plane, (row, column), (to_row, to_column) in reference.pairs_of_grid(9, 12, 5, "full"):
        difference = features[..., row, column] - features[..., to_row, to_column]
        value = torch.exp(-difference.abs().mean(1))
        total = total + (value * weight[:, plane, row, column]).sum()
    total.backward()
    torch.testing.assert_close(found, features.grad)


@mark.parametrize(
    ("dtype", "size", "borders", "radius"),
    all_pairs([torch.uint8, torch.int64], SIZES, BORDERS, [2, 5]),
)
def test_pair_labels_equal_naive_loops(size, borders, radius, dtype):
    generator = torch.Generator().manual_seed(3)
    choice = torch.randint(0, 4, (2, *size), generator=generator)
    labels = torch.tensor([0, 1, 2, 255])[choice].to(dtype)
    kinds = pair_labels(labels, radius=radius, borders=borders)
    assert kinds.dtype == torch.int8
    for label_map, found in zip(labels, kinds, strict=True):
        expected = reference.pair_kinds(label_map, radius, borders)
        assert torch.equal(found, torch.from_numpy(expected).to(torch.int8))


def test_wrong_input_is_refused():
    features = random_features(1, 3, 6, 6)
    with raises(ShapeError, match=r"`features` are \(3, 6, 6\)"):
        affinity_from_features(features[0])
    with raises(ShapeError, match="h, w >= 1"):
        pair_distances(features[:, :, :0])
    with raises(DataError, match="int64"):
        affinity_from_features(features.long())
    with raises(DataError, match="NaN"):
        affinity_from_features(features / 0)
    with raises(ConfigError, match="`beta` is 0"):
        affinity_from_features(features, beta=0)
    with raises(ConfigError, match="`radius` is 1"):
        affinity_from_features(features, radius=1)
    with raises(ConfigError, match=r"unknown `borders` 'psa'.*reference, full"):
        affinity_from_features(features, borders="psa")
    with raises(ShapeError, match="`label_map`"):
        pair_labels(torch.zeros(6, 6, dtype=torch.uint8))
    with raises(DataError, match="integer"):
        pair_labels(torch.zeros(1, 6, 6))


@mark.parametrize("borders", ["reference", "full"])
@mark.parametrize("size", [(1, 1), (1, 13), (2, 3), (19, 12)])
def test_the_compiled_distances_equal_the_loops(size, borders):
    native = importorskip(
        "wsss.runtime.refine.fast.affinity_numba", reason="numba is not installed"
    )
    features = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(4))
    cells = features.permute(0, 2, 3, 1).contiguous()
    found = native.feature_distances(cells, PairOffsets(5), borders)
    for image in range(2):
        expected = torch.from_numpy(reference.distances(features[image], 5, borders))
        torch.testing.assert_close(found[image].double(), expected, rtol=0, atol=1e-6)


def test_large_features_take_the_compiled_form_and_agree_with_torch(monkeypatch):
    importorskip("numba")
    features = torch.randn(1, 64, 40, 45, generator=torch.Generator().manual_seed(4))
    assert affinity._native_distances(features.permute(0, 2, 3, 1)) is not None
    compiled = affinity_from_features(features, beta=8.0)
    monkeypatch.setattr(affinity, "_native_distances", lambda cells: None)
    torch.testing.assert_close(
        compiled, affinity_from_features(features, beta=8.0), rtol=0, atol=1e-6
    )


@mark.parametrize("borders", BORDERS)
@mark.parametrize("size", SIZES)
def test_cosine_affinity_equals_loops(size, borders):
    features = random_features(2, 6, *size, dtype=torch.float64)
    features[0, :, 0, 0] = 0  # like no other
    found = affinity_from_cosine(features, radius=3, beta=2.5, borders=borders)
    expected = torch.zeros_like(found)
    for image in range(2):
        for plane, first, second in reference.pairs_of_grid(*size, 3, borders):
            one, other = features[image, :, first[0], first[1]], features[image, :, *second]
            length = float(one.norm() * other.norm())
            cosine = float(one @ other) / length if length else 0.0
            expected[image, plane, first[0], first[1]] = max(0.0, cosine) ** 2.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_cosine_affinity_of_equal_features_is_one_at_any_length():
    features = random_features(1, 4, 1, 1).expand(1, 4, 5, 5) * torch.rand(1, 1, 5, 5).add(0.1)
    found = affinity_from_cosine(features, beta=8.0)
    for plane, offset in enumerate(PairOffsets(5).offsets):
        region = PairOffsets(5).from_cells(offset, (5, 5), "full")
        torch.testing.assert_close(
            found[0, plane, *region], torch.ones_like(found[0, plane, *region])
        )
    with raises(DataError, match="NaN"):
        affinity_from_cosine(features / 0)
    with raises(ConfigError, match="`beta` is -1"):
        affinity_from_cosine(features, beta=-1)
