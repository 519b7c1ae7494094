import math
from functools import partial

import numpy as np
import torch
from all_pairs import all_pairs
from pytest import approx, mark, raises
from reference import pairs_of_grid, path_between
from reference import path_maxima as naive_maxima

from wsss.errors import ConfigError, DataError, ShapeError
from wsss.runtime.refine import boundary_affinity
from wsss.runtime.refine.boundary_affinity import affinity_from_boundary, path_maxima, path_steps
from wsss.runtime.refine.pairs import PairOffsets

SINGLE_CELL = boundary_affinity.SINGLE_CELL
SIZES = [(1, 1), (1, 13), (11, 1), (2, 3), (5, 9), (12, 17)]
BORDERS = ["reference", "full"]


def naive_gradient(boundary, gradient, radius, borders):
    """Each pair gives its gradient to the greatest cell of its path; no two cells are equal."""
    values, result = boundary[:, 0].numpy(), np.zeros(boundary.shape)
    images = range(len(values))
    for plane, first, second in pairs_of_grid(*values.shape[1:], radius, borders):
        rows, columns = np.transpose(path_between(first, second))
        greatest = values[:, rows, columns].argmax(axis=1)
        pull = gradient[:, plane, first[0], first[1]].numpy()
        result[images, 0, rows[greatest], columns[greatest]] += pull
    return torch.from_numpy(result)


def distinct_boundary(batch, height, width, seed=0):
    """(B, 1, h, w) float64 whose values are multiples of one step, so that no two are near."""
    count = batch * height * width
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return ((order.double() + 0.5) / count).view(batch, 1, height, width)


def random_boundary(batch, height, width):
    return torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(0))


@mark.parametrize(("radius", "visits", "longest"), [(5, 242, 11), (10, 2134, 22)])
def test_paths_have_the_published_lengths_and_few_maxima(radius, visits, longest):
    lengths = [len(boundary_affinity.path_cells(offset)) for offset in PairOffsets(radius).offsets]
    assert (sum(lengths), min(lengths), max(lengths)) == (visits, 2, longest)
    assert sum(len(parts) - 1 for _, parts in path_steps(radius)) == {5: 34, 10: 176}[radius]


@mark.parametrize("radius", range(2, 11))
def test_parts_unite_to_the_path_exactly(radius):
    offsets = PairOffsets(radius).offsets
    built = {SINGLE_CELL: {(0, 0)}}
    for plane, parts in path_steps(radius):
        assert 2 <= len(parts) <= 3
        cells = {(y + dy, x + dx) for part, (dy, dx) in parts for y, x in built[part]}
        assert cells == set(path_between((0, 0), offsets[plane]))
        assert all(len(built[part]) < len(cells) for part, _ in parts)
        built[plane] = cells
    assert set(built) == {SINGLE_CELL, *range(len(offsets))}


@mark.parametrize(
    ("size", "borders", "radius", "batch"), all_pairs(SIZES, BORDERS, [2, 5, 10], [1, 3])
)
def test_affinity_and_maxima_equal_naive_loops(size, borders, radius, batch):
    boundary = random_boundary(batch, *size)
    expected = naive_maxima(boundary, radius, borders)
    # No arithmetic on the way: maxima are values of the map, bit by bit.
    found = path_maxima(boundary, radius=radius, borders=borders)
    assert torch.equal(found, expected.float())
    affinity = affinity_from_boundary(boundary, radius=radius, borders=borders)
    assert torch.equal(affinity, 1 - expected.float())
    powered = affinity_from_boundary(boundary, radius=radius, beta=10.0, borders=borders)
    # float32 keeps 1 - b to 6e-8; the power multiplies its relative error by 10.
    torch.testing.assert_close(powered.double(), (1 - expected) ** 10, rtol=1e-5, atol=1e-12)
    assert bool((powered[expected == 1] == 0).all())


def test_a_wall_parts_the_grid():
    boundary = torch.tensor([[[[0.0, 1.0, 0.0, 0.0]] * 3]])  # 3 x 4, wall in column 1
    affinity = affinity_from_boundary(boundary)[0]
    for plane, (row, column), (_, to_column) in pairs_of_grid(3, 4, 5, "full"):
        one_side = min(column, to_column) >= 2 or max(column, to_column) == 0
        assert affinity[plane, row, column] == float(one_side)
    right = PairOffsets(5).offsets.index((0, 1))
    assert affinity[right].tolist() == [[0, 0, 1, 0]] * 3


def test_a_gap_in_a_wall_lets_straight_paths_through():
    boundary = torch.tensor([[[[0.0, 1.0, 0.0], [0.0, 0.2, 0.0], [0.0, 1.0, 0.0]]]])
    affinity, offsets = affinity_from_boundary(boundary, radius=3)[0], PairOffsets(3).offsets
    assert affinity[offsets.index((0, 2)), :, 0].tolist() == approx([0, 0.8, 0])
    # The slanted path from (0, 0) to (1, 2) holds the wall's cell (0, 1) too.
    assert affinity[offsets.index((1, 2)), 0, 0] == 0


@mark.parametrize("together", [False, True])
@mark.parametrize("borders", BORDERS)
def test_results_do_not_depend_on_the_batch(borders, together, monkeypatch):
    if together:  # as on a GPU
        monkeypatch.setattr(boundary_affinity, "_micro_batches", lambda _: [slice(0, 3)])
    boundary = random_boundary(3, 7, 11).requires_grad_()
    affinity = affinity_from_boundary(boundary, radius=4, beta=7.3, borders=borders)
    maxima = path_maxima(boundary, radius=4, borders=borders)
    (gradient,) = torch.autograd.grad((maxima**2).sum(), boundary)
    for index in range(3):
        image = boundary[index : index + 1].detach().requires_grad_()
        alone = path_maxima(image, radius=4, borders=borders)
        assert torch.equal(maxima[index : index + 1], alone)
        (own,) = torch.autograd.grad((alone**2).sum(), image)
        assert torch.equal(gradient[index : index + 1], own)
        alone = affinity_from_boundary(image, radius=4, beta=7.3, borders=borders)
        # Powers of a whole batch at once may differ in the last bit.
        close = {"rtol": 1e-6 * together, "atol": 0}
        torch.testing.assert_close(affinity[index : index + 1], alone, **close)


def test_an_empty_batch_gives_an_empty_result():
    boundary = torch.zeros(0, 1, 4, 5, requires_grad=True)
    assert affinity_from_boundary(boundary).shape == (0, 34, 4, 5)
    path_maxima(boundary, radius=5, borders="full").sum().backward()


def test_memory_layout_of_the_map_is_irrelevant():
    boundary = distinct_boundary(2, 6, 9).requires_grad_()
    turned = boundary.transpose(2, 3).contiguous().transpose(2, 3)
    assert not turned.is_contiguous()
    both = [path_maxima(values, radius=5, borders="full") for values in (boundary, turned)]
    assert torch.equal(*both)
    assert torch.equal(*(torch.autograd.grad((m**2).sum(), boundary)[0] for m in both))


def test_a_great_beta_underflows_to_zero():
    boundary = random_boundary(1, 6, 8).clamp(min=0.5)
    assert bool((affinity_from_boundary(boundary, beta=1e6) == 0).all())
    powered, plain = (affinity_from_boundary(boundary * 0, beta=beta) for beta in (1e6, 1.0))
    assert torch.equal(powered, plain)


@mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    boundary = random_boundary(1, 5, 8).to(dtype).requires_grad_()
    affinity = affinity_from_boundary(boundary, beta=3.0)
    assert affinity.dtype == torch.float32
    assert torch.equal(affinity, affinity_from_boundary(boundary.float(), beta=3.0))
    path_maxima(boundary, radius=5, borders="full").sum().backward()
    assert boundary.grad is not None and boundary.grad.dtype == dtype
    assert affinity_from_boundary(boundary.double()).dtype == torch.float64


@mark.parametrize("borders", BORDERS)
@mark.parametrize(("size", "radius"), [((1, 1), 2), ((3, 2), 3), ((3, 4), 3)])
def test_gradient_passes_gradcheck(size, radius, borders):
    boundary = distinct_boundary(1, *size).requires_grad_()
    maxima = partial(path_maxima, radius=radius, borders=borders)
    assert torch.autograd.gradcheck(maxima, (boundary,), eps=1e-6, atol=1e-6)


@mark.parametrize(
    ("size", "borders", "radius"),
    all_pairs([(1, 13), (2, 3), (5, 9), (11, 20)], BORDERS, [2, 5, 10]),
)
def test_gradient_equals_naive_loops(size, borders, radius):
    boundary = distinct_boundary(2, *size, seed=1).requires_grad_()
    maxima = path_maxima(boundary, radius=radius, borders=borders)
    pull = torch.randn(maxima.shape, generator=torch.Generator().manual_seed(2)).double()
    (found,) = torch.autograd.grad(maxima, boundary, pull)
    expected = naive_gradient(boundary.detach(), pull, radius, borders)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradient_where_there_is_no_pair_is_ignored():
    boundary = distinct_boundary(1, 4, 6).requires_grad_()
    maxima = path_maxima(boundary, radius=3, borders="full")
    (expected,) = torch.autograd.grad(maxima.sum(), boundary, retain_graph=True)
    pull = torch.full_like(maxima, math.nan)
    for plane, (row, column), _ in pairs_of_grid(4, 6, 3, "full"):
        pull[:, plane, row, column] = 1
    assert torch.equal(torch.autograd.grad(maxima, boundary, pull)[0], expected)


def greatest_by_rule(boundary, parts_of, plane, cell):
    """The documented rule for ties, followed from the longest path down to a single cell."""
    if plane == SINGLE_CELL:
        return cell
    offers = []
    for part, (dy, dx) in parts_of[plane]:
        offers.append(greatest_by_rule(boundary, parts_of, part, (cell[0] + dy, cell[1] + dx)))
    return max(offers, key=lambda offer: boundary[0, 0, offer[0], offer[1]])  # first of equals


@mark.parametrize("radius", [4, 7])
def test_one_of_equal_cells_takes_the_gradient(radius):
    boundary = (random_boundary(1, 7, 8).double() * 2).round().div(2).requires_grad_()
    maxima = path_maxima(boundary, radius=radius, borders="full")
    parts_of = dict(path_steps(radius))
    for plane, first, second in pairs_of_grid(7, 8, radius, "full")[::23]:
        single = maxima[0, plane, first[0], first[1]]
        (found,) = torch.autograd.grad(single, boundary, retain_graph=True)
        row, column = greatest_by_rule(boundary, parts_of, plane, first)
        assert (row, column) in path_between(first, second)
        assert boundary[0, 0, row, column] == single
        assert found[0, 0, row, column] == 1 and found.count_nonzero() == 1


def test_wrong_input_is_refused():
    boundary = random_boundary(1, 6, 6)
    with raises(ShapeError, match=r"`boundary` is \(1, 6, 6\).*`boundary.unsqueeze\(1\)`"):
        affinity_from_boundary(boundary[0])
    with raises(ShapeError, match=r"\(1, 2, 6, 6\), expected \(B, 1, h, w\)"):
        affinity_from_boundary(boundary.expand(1, 2, 6, 6))
    with raises(ShapeError, match="h, w >= 1"):
        affinity_from_boundary(boundary[:, :, :0])
    with raises(DataError, match="int64, expected floating point"):
        affinity_from_boundary(boundary.long())
    for wrong in (math.nan, math.inf, -0.1, 1.1):
        spoilt = boundary.index_fill(3, torch.tensor(4), wrong).requires_grad_()
        for function in (affinity_from_boundary, path_maxima):
            with raises(DataError, match=r"`boundary` spans .* in \[0, 1\] and no NaN: .*sigmoid"):
                function(spoilt, radius=5, borders="full")
    for beta in (0, -1.0, math.nan, math.inf):
        with raises(ConfigError, match=r"`beta` is .* must be a finite number above 0"):
            affinity_from_boundary(boundary, beta=beta)
    with raises(ConfigError, match="`radius` is 1"):
        affinity_from_boundary(boundary, radius=1)
    with raises(ConfigError, match=r"unknown `borders` 'psa'.*reference, full"):
        path_maxima(boundary, radius=5, borders="psa")
