"""Losses of CIAN against loops over pixels, and what they leave out."""

import cian_reference
import numpy as np
import pytest
import torch

from wsss.training.methods.cian.losses import (
    CIAN_NAMES,
    cian_loss,
    cian_loss_sums,
    cian_terms,
    completion_labels,
)
from wsss.training.methods.shared.losses import segmentation_loss


def case(seed, batch=4, planes=5, height=7, width=6):
    """Logits (2, B, C + 1, h, w), labels with undecided cells, and cells of padding."""
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.normal(0, 2, (2, batch, planes, height, width)))
    labels = generator.integers(0, planes, (batch, height, width))
    labels[generator.random(labels.shape) < 0.6] = 255
    labels[0][labels[0] == 1] = 255  # class 1 is not among the labels of the first image
    labels[-1] = 255  # an image about which nothing is known
    inside = torch.ones(batch, height, width, dtype=torch.bool)
    inside[1, -2:] = False
    labels[1, -2:] = 255
    return logits, torch.from_numpy(labels), inside


def expected_terms(logits, labels, inside):
    own, cross = logits.detach().numpy()
    return cian_reference.loss(own, cross, labels.numpy(), inside.numpy())


@pytest.mark.parametrize("seed", range(4))
def test_terms_are_means_over_the_pixels_that_count(seed):
    logits, labels, inside = case(seed)
    sums, counts = cian_loss_sums(logits, labels, inside)
    expected = expected_terms(logits, labels, inside)
    assert len(expected) == len(CIAN_NAMES) and min(expected) > 0
    np.testing.assert_allclose(cian_terms(sums, counts, 0.0).numpy(), expected, rtol=1e-12)
    loss = cian_loss(sums, counts, 0.0, 0.3)
    assert loss.item() == pytest.approx(sum(expected[:2]) + 0.3 * sum(expected[2:]), rel=1e-12)
    assert cian_loss(sums, counts, 0.0, 1.0).item() == pytest.approx(sum(expected), rel=1e-12)


def test_completion_takes_the_greatest_plane_where_the_crop_has_it():
    logits, labels, inside = case(1)
    found = completion_labels(logits[1], labels, inside).numpy()
    expected = cian_reference.completion_labels(logits[1].numpy(), labels.numpy(), inside.numpy())
    np.testing.assert_array_equal(found, expected)
    assert 1 not in found[0] and (found[-1] == 255).all() and (found[1, -2:] == 255).all()
    undecided = (labels.numpy() == 255) & (found != 255)
    assert undecided.any()  # what seeds do not know is completed


def test_a_crop_of_which_nothing_is_known_gives_no_loss_and_no_nan():
    logits, labels, inside = case(2)
    logits.requires_grad_()
    sums, counts = cian_loss_sums(logits, torch.full_like(labels, 255), inside)
    loss = cian_loss(sums, counts, 0.5, 1.0)
    loss.backward()
    assert loss.item() == 0 and not counts.any()
    assert logits.grad is not None and not logits.grad.any()


def test_what_the_cross_branch_says_is_no_way_for_gradients():
    """The targets are fixed: numeric gradients of the loss with them held are the same."""
    logits, labels, inside = case(3)
    logits.requires_grad_()
    cian_loss(*cian_loss_sums(logits, labels, inside), 0.0, 1.0).backward()
    fixed = completion_labels(logits[1], labels, inside)
    assert not fixed.requires_grad
    again = logits.detach().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for target in (labels, fixed):
        for branch in again:
            total = total + torch.nn.functional.cross_entropy(branch, target, ignore_index=255)
    total.backward()
    torch.testing.assert_close(logits.grad, again.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("balance", [0.0, 0.75])
def test_sums_and_counts_of_parts_add_up(balance):
    """Means over the groups of all processes, not means of means."""
    logits, labels, inside = case(4)
    whole = cian_loss_sums(logits, labels, inside)
    parts = [
        cian_loss_sums(logits[:, rows], labels[rows], inside[rows])
        for rows in (slice(0, 1), slice(1, 4))
    ]
    added = [torch.stack(values).sum(0) for values in zip(*parts, strict=True)]
    expected = cian_terms(*whole, balance)
    torch.testing.assert_close(cian_terms(*added, balance), expected, rtol=1e-12, atol=0)
    balances = (balance, balance, 0.0, 0.0)  # what the cross branch says is not evened out
    each = [
        segmentation_loss(*term)
        for term in zip(whole[0].chunk(4), whole[1].chunk(4), balances, strict=True)
    ]
    torch.testing.assert_close(torch.stack(each), expected, rtol=1e-12, atol=0)
