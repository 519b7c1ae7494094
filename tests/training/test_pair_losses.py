"""Losses on pairs against naive float64 loops, in value and gradient."""

from functools import partial

import numpy as np
import reference
import torch
from pytest import approx, mark, raises

from wsss.errors import ShapeError
from wsss.runtime.refine.boundary_affinity import path_maxima
from wsss.runtime.refine.feature_affinity import pair_distances, pair_labels
from wsss.runtime.refine.pairs import PairKind
from wsss.training.methods.shared import pair_losses
from wsss.training.methods.shared.pair_losses import (
    affinity_loss,
    affinity_loss_sums,
    displacement_loss_sums,
    irnet_loss,
)

BORDERS = ["reference", "full"]
SIZES = [(1, 1), (1, 7), (6, 1), (3, 2), (5, 8), (9, 7)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_pairs(batch=3, height=7, width=11):
    affinity = torch.rand(batch, 34, height, width, generator=generator(), dtype=torch.float64)
    kinds = torch.randint(0, 4, affinity.shape, generator=generator(1)).to(torch.int8)
    return affinity, kinds


def test_affinity_loss_equals_naive_loops():
    affinity, kinds = random_pairs()
    affinity.view(-1)[:50] = 0.0
    affinity.view(-1)[50:100] = 1.0
    loss = affinity_loss(*affinity_loss_sums(affinity, kinds))
    assert float(loss) == approx(reference.affinity_loss(affinity, kinds), rel=1e-12)


@mark.parametrize("kind", [0, 1, 2, 3])
def test_a_single_kind_of_pairs(kind):
    affinity, kinds = random_pairs(1)
    loss = affinity_loss(*affinity_loss_sums(affinity, torch.full_like(kinds, kind)))
    expected = reference.affinity_loss(affinity, torch.full_like(kinds, kind))
    assert float(loss) == approx(expected, rel=1e-12)
    assert kind < 3 or float(loss) == 0


def test_affinity_loss_of_parts_with_global_counts_adds_up():
    affinity, kinds = random_pairs(4)
    whole = affinity_loss(*affinity_loss_sums(affinity, kinds))
    parts = [affinity_loss_sums(affinity[i::2], kinds[i::2]) for i in range(2)]
    counts = parts[0][1] + parts[1][1]
    assert float(sum(affinity_loss(sums, counts) for sums, _ in parts)) == approx(float(whole))


def test_affinity_loss_through_features_has_the_right_gradient():
    features = torch.randn(2, 3, 4, 5, generator=generator(), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (2, 4, 5), generator=generator(1))]
    kinds = pair_labels(labels, radius=3, borders="full")

    def loss(values):
        affinity = torch.exp(-pair_distances(values, radius=3, borders="full"))
        return affinity_loss(*affinity_loss_sums(affinity, kinds))

    assert torch.autograd.gradcheck(loss, (features.requires_grad_(),), eps=1e-7, atol=1e-6)


def test_affinity_loss_of_equal_features_is_finite_with_gradient():
    features = torch.zeros(1, 4, 9, 12, requires_grad=True)
    labels = torch.arange(108).view(1, 9, 12) % 3
    affinity = torch.exp(-pair_distances(features))
    loss = affinity_loss(*affinity_loss_sums(affinity, pair_labels(labels)))
    loss.backward()
    assert bool(loss.isfinite()) and bool(features.grad.isfinite().all())


def test_affinity_loss_takes_half_precision():
    affinity, kinds = random_pairs()
    sums, counts = affinity_loss_sums(affinity.bfloat16(), kinds)
    assert sums.dtype == counts.dtype == torch.float32
    assert float(affinity_loss(sums, counts)) == approx(
        reference.affinity_loss(affinity, kinds), rel=0.05
    )


def test_affinity_loss_refuses_other_shapes():
    affinity, kinds = random_pairs()
    with raises(ShapeError, match="expected the same shape"):
        affinity_loss_sums(affinity[..., 1:], kinds)


def random_labels(batch, height, width, seed=1):
    """(B, h, w) of background, two classes and pixels to be ignored."""
    choice = torch.randint(0, 5, (batch, height, width), generator=generator(seed))
    return torch.tensor([0, 0, 1, 2, 255])[choice]


def random_field(batch, height, width, seed=2):
    """(B, 2, h, w) float64 displacements of some cells."""
    values = torch.randn(batch, 2, height, width, generator=generator(seed), dtype=torch.float64)
    return 3 * values


def loss_of(boundary, displacement, labels, radius, borders):
    """The loss as the stage puts it together."""
    kinds = pair_labels(labels, radius=radius, borders=borders)
    affinity = 1 - path_maxima(boundary, radius=radius, borders=borders)
    parts = [affinity_loss_sums(affinity, kinds)]
    if displacement is not None:
        parts.append(displacement_loss_sums(displacement, kinds, radius=radius))
    sums, counts = zip(*parts, strict=True)
    return irnet_loss(torch.cat(sums), torch.cat(counts))


@mark.parametrize("radius", [2, 3, 5])
@mark.parametrize("borders", BORDERS)
@mark.parametrize("size", SIZES)
def test_displacement_errors_equal_naive_loops(size, borders, radius):
    field = random_field(2, *size).requires_grad_()
    kinds = pair_labels(random_labels(2, *size), radius=radius, borders=borders)
    sums, counts = displacement_loss_sums(field, kinds, radius=radius)
    expected, numbers, gradients = reference.pair_errors(field.detach(), kinds, radius)
    assert sums.tolist() == approx(expected.tolist(), rel=1e-12, abs=1e-12)
    assert counts.tolist() == numbers.tolist()
    for kind in range(2):
        (found,) = torch.autograd.grad(sums[kind], field, retain_graph=True)
        assert torch.equal(found, torch.from_numpy(gradients[kind]))


def test_displacement_errors_of_the_published_radius_in_float32():
    field = random_field(2, 13, 24).float().requires_grad_()
    kinds = pair_labels(random_labels(2, 13, 24), radius=10, borders="reference")
    sums, counts = displacement_loss_sums(field, kinds, radius=10)
    expected, numbers, gradients = reference.pair_errors(field.detach(), kinds, 10)
    assert sums.dtype == counts.dtype == torch.float32
    assert sums.tolist() == approx(expected.tolist(), rel=1e-6)
    assert counts.tolist() == numbers.tolist()
    (found,) = torch.autograd.grad(sums @ torch.tensor([2.0, -3.0]), field)
    # Whole numbers; no error of this sample is so near to 0 that rounding turns its sign.
    assert np.array_equal(found.numpy(), 2 * gradients[0] - 3 * gradients[1])


def test_equal_displacements_have_no_gradient_in_background():
    labels = torch.zeros(1, 6, 7, dtype=torch.uint8)
    kinds = pair_labels(labels, radius=3, borders="full")
    field = torch.full((1, 2, 6, 7), 1.5, requires_grad=True)
    sums, counts = displacement_loss_sums(field, kinds, radius=3)
    sums.sum().backward()
    assert sums.tolist() == [0, 0]
    assert counts.tolist() == [2 * len(reference.pairs_of_grid(6, 7, 3, "full")), 0]
    assert not field.grad.any()


def test_pointing_to_one_place_is_free_for_an_object_and_dear_for_background():
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    field = torch.stack([2.5 - rows, 4.0 - columns])[None]
    for label, free in ((1, PairKind.FOREGROUND), (0, PairKind.BACKGROUND)):
        kinds = pair_labels(torch.full((1, 6, 7), label), radius=3, borders="full")
        sums, _ = displacement_loss_sums(field, kinds, radius=3)
        steps = [
            abs(second[axis] - first[axis])
            for _, first, second in reference.pairs_of_grid(6, 7, 3, "full")
            for axis in range(2)
        ]
        assert float(sums[free]) == (0 if label else sum(steps))


@mark.parametrize("with_displacement", [True, False])
@mark.parametrize("borders", BORDERS)
@mark.parametrize(("size", "radius"), [((4, 5), 3), ((9, 11), 5), ((1, 1), 2)])
def test_irnet_loss_equals_naive_loops(size, radius, borders, with_displacement):
    boundary = torch.rand(2, 1, *size, generator=generator(), dtype=torch.float64)
    field, labels = random_field(2, *size), random_labels(2, *size)
    field = field if with_displacement else None
    loss = loss_of(boundary, field, labels, radius, borders)
    expected = reference.irnet_loss(boundary, field, labels, radius, borders)
    assert loss.item() == approx(expected, rel=1e-12)


@mark.parametrize("borders", BORDERS)
def test_gradient_of_irnet_loss_passes_gradcheck(borders):
    boundary = torch.rand(1, 1, 4, 5, generator=generator(), dtype=torch.float64)
    field, labels = random_field(1, 4, 5), random_labels(1, 4, 5)
    loss = partial(loss_of, labels=labels, radius=3, borders=borders)
    inputs = (boundary.requires_grad_(), field.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-7, atol=1e-6)


@mark.parametrize(("label", "terms"), [(0, {0, 3}), (1, {1, 4}), (255, set())])
def test_empty_kinds_add_nothing(label, terms):
    boundary = torch.rand(1, 1, 5, 6, generator=generator()).requires_grad_()
    field = random_field(1, 5, 6).float().requires_grad_()
    labels = torch.full((1, 5, 6), label)
    kinds = pair_labels(labels, radius=3, borders="full")
    affinity = 1 - path_maxima(boundary, radius=3, borders="full")
    parts = affinity_loss_sums(affinity, kinds), displacement_loss_sums(field, kinds, radius=3)
    sums, counts = (torch.cat(values) for values in zip(*parts, strict=True))
    assert set(counts.nonzero()[:, 0].tolist()) == set(sums.nonzero()[:, 0].tolist()) == terms
    loss = irnet_loss(sums, counts)
    loss.backward()
    expected = reference.irnet_loss(boundary.detach(), field.detach(), labels, 3, "full")
    assert loss.item() == approx(expected, rel=1e-5)
    assert bool(boundary.grad.any()) == bool(field.grad.any()) == bool(terms)


def test_cells_to_ignore_have_no_influence():
    boundary = torch.rand(1, 1, 7, 8, generator=generator(), dtype=torch.float64)
    field, labels = random_field(1, 7, 8).requires_grad_(), random_labels(1, 7, 8)
    loss = loss_of(boundary, field, labels, 4, "full")
    (gradient,) = torch.autograd.grad(loss, field)
    ignored = (labels == 255)[:, None].expand_as(field)
    assert not gradient[ignored].any() and gradient[~ignored].any()
    moved = torch.where(ignored, 99.0, field.detach())
    assert float(loss_of(boundary, moved, labels, 4, "full")) == approx(loss.item(), rel=1e-12)


def test_irnet_loss_of_parts_with_global_counts_adds_up():
    boundary = torch.rand(4, 1, 6, 7, generator=generator(), dtype=torch.float64)
    field, labels = random_field(4, 6, 7), random_labels(4, 6, 7)
    kinds = pair_labels(labels, radius=3, borders="full")
    affinity = 1 - path_maxima(boundary, radius=3, borders="full")
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        sums, counts = zip(
            affinity_loss_sums(affinity[rows], kinds[rows]),
            displacement_loss_sums(field[rows], kinds[rows], radius=3),
            strict=True,
        )
        parts.append((torch.cat(sums), torch.cat(counts)))
    counts = parts[0][1] + parts[1][1]
    whole = loss_of(boundary, field, labels, 3, "full")
    assert float(sum(irnet_loss(sums, counts) for sums, _ in parts)) == approx(whole.item())


def test_the_size_of_blocks_changes_nothing(monkeypatch):
    affinity, kinds = random_pairs()
    results = []
    for size in (1, 1000, 2**20):
        monkeypatch.setattr(pair_losses, "_CPU_BLOCK", size)
        values = affinity[..., :3].clone().requires_grad_()
        sums, counts = affinity_loss_sums(values, kinds[..., :3])
        (gradient,) = torch.autograd.grad(sums @ torch.tensor([1.0, 2, 3]).double(), values)
        results.append((sums, counts, gradient))
    for sums, counts, gradient in results[1:]:
        assert sums.tolist() == approx(results[0][0].tolist(), rel=1e-12)
        assert torch.equal(counts, results[0][1]) and torch.equal(gradient, results[0][2])


def test_half_precision_and_other_layouts_of_displacements():
    labels = random_labels(1, 5, 6)
    kinds = pair_labels(labels, radius=3, borders="full")
    field = random_field(1, 5, 6).bfloat16()
    expected = displacement_loss_sums(field.float(), kinds, radius=3)[0]
    turned = field.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).requires_grad_()
    sums, _ = displacement_loss_sums(turned, kinds, radius=3)
    sums.sum().backward()
    assert sums.dtype == torch.float32 and torch.equal(sums, expected)
    assert turned.grad.dtype == torch.bfloat16


def test_displacement_errors_refuse_other_shapes():
    kinds = pair_labels(random_labels(1, 4, 5), radius=3, borders="full")
    with raises(ShapeError, match=r"`displacement` is \(1, 2, 4, 6\) .* \(B, 12, h, w\)"):
        displacement_loss_sums(torch.zeros(1, 2, 4, 6), kinds, radius=3)
    with raises(ShapeError, match=r"\(1, 1, 4, 5\)"):
        displacement_loss_sums(torch.zeros(1, 1, 4, 5), kinds, radius=3)
    with raises(ShapeError, match=r"\(B, 34, h, w\)"):
        displacement_loss_sums(torch.zeros(1, 2, 4, 5), kinds, radius=5)
