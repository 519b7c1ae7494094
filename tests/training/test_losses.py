import reference
import torch
from pytest import approx, mark, raises

from wsss.errors import DataError, ShapeError
from wsss.runtime.affinity import pair_distances, pair_labels
from wsss.training.losses import (
    affinity_loss,
    affinity_loss_sums,
    classification_loss,
    segmentation_loss,
    segmentation_loss_sums,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_pairs(batch=3, height=7, width=11):
    affinity = torch.rand(batch, 34, height, width, generator=generator(), dtype=torch.float64)
    kinds = torch.randint(0, 4, affinity.shape, generator=generator(1)).to(torch.int8)
    return affinity, kinds


def test_classification_loss_equals_naive_loops():
    logits = 3 * torch.randn(5, 7, generator=generator(), dtype=torch.float64)
    labels = torch.randint(0, 2, (5, 7), generator=generator(1))
    loss = classification_loss(logits, labels)
    assert float(loss) == approx(reference.classification_loss(logits, labels), rel=1e-12)
    halves = classification_loss(logits[:, :1], labels[:, :1])
    assert float(halves) == approx(
        reference.classification_loss(logits[:, :1], labels[:, :1]), rel=1e-12
    )


def test_classification_loss_of_extreme_logits_is_finite():
    loss = classification_loss(torch.tensor([[1e4, -1e4]]), torch.tensor([[0, 1]]))
    assert float(loss) == approx(1e4)


def test_classification_loss_refuses_unknown_labels():
    with raises(DataError, match="unknown"):
        classification_loss(torch.zeros(1, 2), torch.tensor([[1, -1]]))
    with raises(ShapeError, match=r"\(1, 2\) and `labels` \(1, 3\)"):
        classification_loss(torch.zeros(1, 2), torch.zeros(1, 3))


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


@mark.parametrize("dtype", [torch.uint8, torch.int64])
@mark.parametrize("size", [(1, 1), (5, 4)])
def test_segmentation_loss_equals_naive_loops(size, dtype):
    logits = torch.randn(3, 4, *size, generator=generator(), dtype=torch.float64)
    choice = torch.randint(0, 5, (3, *size), generator=generator(1))
    labels = torch.tensor([0, 1, 2, 3, 255])[choice].to(dtype)
    sums, counts = segmentation_loss_sums(logits, labels)
    expected, expected_counts = reference.segmentation_loss(logits, labels)
    assert sums.tolist() == approx(expected, rel=1e-12)
    assert counts.tolist() == expected_counts
    by_pixels = sum(expected) / max(sum(expected_counts), 1)
    assert float(segmentation_loss(sums, counts, 0)) == approx(by_pixels, rel=1e-12)
    means = [total / n for total, n in zip(expected, expected_counts, strict=True) if n]
    by_labels = sum(means) / len(means)
    assert float(segmentation_loss(sums, counts, 1)) == approx(by_labels, rel=1e-12)
    roots = [n**0.5 for n in expected_counts if n]
    between = sum(mean * root for mean, root in zip(means, roots, strict=True)) / sum(roots)
    assert float(segmentation_loss(sums, counts, 0.5)) == approx(between, rel=1e-12)


def test_segmentation_loss_of_ignored_pixels_is_zero_with_zero_gradient():
    logits = torch.randn(1, 3, 4, 4, generator=generator()).requires_grad_()
    sums, counts = segmentation_loss_sums(logits, torch.full((1, 4, 4), 255))
    total = segmentation_loss(sums, counts, 1) + segmentation_loss(sums, counts, 0)
    total.backward()
    assert total.item() == counts.sum() == 0
    assert float(logits.grad.abs().max()) == 0


def test_segmentation_loss_refuses_wrong_labels():
    logits = torch.zeros(1, 3, 4, 4)
    with raises(DataError, match="hold 3, expected 0 to 2 or 255"):
        segmentation_loss_sums(logits, torch.full((1, 4, 4), 3))
    with raises(ShapeError, match=r"`labels` \(1, 4, 5\)"):
        segmentation_loss_sums(logits, torch.zeros(1, 4, 5, dtype=torch.uint8))
