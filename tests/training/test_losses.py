import reference
import torch
from pytest import approx, mark, raises

from wsss.errors import DataError, ShapeError
from wsss.training.methods.shared.losses import (
    classification_loss,
    segmentation_loss,
    segmentation_loss_sums,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


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
