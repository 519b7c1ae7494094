"""SEC's losses against loops, their gradients, and what they leave out."""

import numpy as np
import pytest
import sec_reference
import torch
from torch import Tensor

from wsss.errors import ShapeError
from wsss.runtime.refine.dense_crf import CrfSettings, DenseCrf, unary_from_logits
from wsss.training.methods.sec.losses import (
    PUBLISHED_CELLS,
    Term,
    constrain_term,
    expansion_terms,
    floored_probabilities,
    image_on_grid,
    join_terms,
    seed_term,
    weighted_means,
)

DECAYS = {"object_decay": 0.996, "background_decay": 0.999}
CRF = CrfSettings(iterations=3, gaussian_sxy=0.5, bilateral_sxy=3.0, bilateral_srgb=30.0)


class Batch:
    """Three images of three classes: the second shows padding, the third nothing but padding."""

    def __init__(self, height: int = 5, width: int = 6) -> None:
        generator = torch.Generator().manual_seed(height * width)
        size = (3, 4, height, width)
        self.logits = 2 * torch.randn(size, generator=generator, dtype=torch.float64)
        self.inside = torch.ones(3, height, width, dtype=torch.bool)
        self.inside[1, :, width - 1 :] = False
        self.inside[1, :1] = False
        self.inside[2] = False
        choice = torch.randint(0, 5, (3, height, width), generator=generator)
        labels = torch.tensor([0, 1, 2, 255, 255])[choice]
        self.labels = torch.where(self.inside, labels, 255).to(torch.uint8)
        self.present = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]]) > 0
        draws = torch.randint(0, 256, (3, height, width, 3), generator=generator)
        self.images = draws.to(torch.uint8)

    def expansion(self, logits: Tensor) -> tuple[Term, Term, Term]:
        shares = floored_probabilities(logits)
        return expansion_terms(shares, self.present, self.inside, **DECAYS)

    def constrain(self, logits: Tensor) -> Term:
        return constrain_term(logits, self.images, self.inside, CRF)


SIZES = [(1, 2), (5, 6), (9, 7)]


@pytest.mark.parametrize("size", SIZES)
def test_seed_term_equals_loops(size: tuple[int, int]) -> None:
    batch = Batch(*size)
    total, count = seed_term(floored_probabilities(batch.logits), batch.labels)
    expected = [
        value
        for logits, labels in zip(batch.logits, batch.labels, strict=True)
        if (value := sec_reference.seed(logits.numpy(), labels.numpy())) is not None
    ]
    assert float(total) == pytest.approx(sum(expected), rel=1e-12)
    assert float(count) == len(expected)


@pytest.mark.parametrize("size", [*SIZES, (41, 41)])
def test_expansion_terms_equal_loops(size: tuple[int, int]) -> None:
    batch = Batch(*size)
    expected = [
        sec_reference.expansion(logits.numpy(), present.numpy(), inside.numpy(), *DECAYS.values())
        for logits, present, inside in zip(batch.logits, batch.present, batch.inside, strict=True)
    ]
    for (total, count), values in zip(
        batch.expansion(batch.logits), zip(*expected, strict=True), strict=True
    ):
        kept = [value for value in values if value is not None]
        assert float(total) == pytest.approx(sum(kept), rel=1e-9)
        assert float(count) == len(kept)


def test_published_decays_are_met_on_the_published_grid() -> None:
    """On 41 x 41 cells without padding a rank weighs 0.996 times the one before it."""
    plane = torch.linspace(4, -4, PUBLISHED_CELLS, dtype=torch.float64)
    logits = torch.stack([torch.zeros_like(plane), plane]).view(1, 2, 41, 41)
    shares = floored_probabilities(logits)
    inside = torch.ones(1, 41, 41, dtype=torch.bool)
    (total, _), _, _ = expansion_terms(shares, torch.ones(1, 1) > 0, inside, **DECAYS)
    weights = 0.996 ** torch.arange(PUBLISHED_CELLS, dtype=torch.float64)
    mean = (shares[0, 1].flatten() * weights).sum() / weights.sum()
    assert float(total) == pytest.approx(-float(mean.log()), rel=1e-12)


def test_the_same_share_counts_on_every_grid() -> None:
    """A picture with every cell doubled asks for what the picture asks for."""
    batch = Batch(12, 12)
    fine = batch.logits[:1].repeat_interleave(4, 2).repeat_interleave(4, 3)
    values = []
    for logits in (batch.logits[:1], fine):
        inside = torch.ones(1, *logits.shape[2:], dtype=torch.bool)
        terms = expansion_terms(floored_probabilities(logits), batch.present[:1], inside, **DECAYS)
        values.append([float(total) for total, _ in terms])
    assert values[1] == pytest.approx(values[0], rel=0.03)


@pytest.mark.parametrize("size", SIZES)
def test_constrain_term_equals_loops(size: tuple[int, int]) -> None:
    batch = Batch(*size)
    total, count = batch.constrain(batch.logits)
    expected = 0.0
    for logits, image, inside in zip(batch.logits, batch.images, batch.inside, strict=True):
        if inside.any():
            rows, columns = (np.flatnonzero(inside.any(dim).numpy()) for dim in (1, 0))
            part = logits[:, rows][:, :, columns]
            pixels = np.ascontiguousarray(image.numpy()[np.ix_(rows, columns)])
            crf = DenseCrf(pixels, CRF).refine(unary_from_logits(part)).numpy()
            expected += sec_reference.divergence(part.numpy(), crf)
    assert float(total) == pytest.approx(expected, rel=1e-6)
    assert float(count) == batch.inside.sum()


def test_the_crf_is_that_of_all_pairs_of_cells() -> None:
    """Wide kernels, for which the lattice is a good approximation."""
    batch = Batch(6, 6)
    wide = CrfSettings(2, gaussian_sxy=2.0, bilateral_sxy=4.0, bilateral_srgb=200.0)
    smooth = (batch.images[0] // 8 + 100).contiguous()
    total, count = constrain_term(batch.logits[:1], smooth[None], batch.inside[:1], wide)
    crf = sec_reference.crf(batch.logits[0].numpy(), smooth.numpy(), wide)
    expected = sec_reference.divergence(batch.logits[0].numpy(), crf)
    assert float(total) == pytest.approx(expected, rel=0.1)
    assert expected > 0.1 * float(count)  # the CRF says something else than the network


def test_strong_disagreement_costs_a_bound_and_has_no_gradient() -> None:
    """All cells look alike; one is sure of label 0, those around it of label 1."""
    logits = torch.zeros(1, 2, 7, 7, dtype=torch.float64)
    logits[0, 1] = 12
    logits[0, :, 3, 3] = torch.tensor([12.0, 0.0])
    logits[0, :, 0, 0] = torch.tensor([1.0, 0.0])  # not so sure: it learns
    logits.requires_grad_()
    images = torch.full((1, 7, 7, 3), 128, dtype=torch.uint8)
    wide = CrfSettings(5, 3.0, 10.0, bilateral_sxy=20.0, bilateral_srgb=13.0, bilateral_compat=10.0)
    total, _ = constrain_term(logits, images, torch.ones(1, 7, 7, dtype=torch.bool), wide)
    crf = DenseCrf(images[0].numpy(), wide).refine(unary_from_logits(logits.detach()[0])).numpy()
    assert crf[1].min() > 0.999
    values = logits.detach()[0].numpy()
    assert total.item() == pytest.approx(sec_reference.divergence(values, crf), rel=1e-6)
    alone = sec_reference.divergence(values[:, 3:4, 3:4], crf[:, 3:4, 3:4])
    assert alone == pytest.approx(np.log(20), rel=1e-3)
    total.backward()
    pull = logits.grad[0].abs().amax(0)
    assert float(pull[3, 3]) == 0 and float(pull[0, 0]) > 0.1


def test_gradients_are_those_of_finite_differences() -> None:
    batch = Batch(3, 4)
    logits = batch.logits.clone().requires_grad_()

    def seed(values: Tensor) -> Tensor:
        return seed_term(floored_probabilities(values), batch.labels)[0]

    def expand(values: Tensor) -> Tensor:
        return torch.stack([total for total, _ in batch.expansion(values)])

    assert torch.autograd.gradcheck(seed, logits)
    assert torch.autograd.gradcheck(expand, logits)


def test_the_crf_is_constant_in_the_gradient() -> None:
    batch = Batch()
    logits = batch.logits[:1].clone().requires_grad_()
    total, _ = constrain_term(logits, batch.images[:1], batch.inside[:1], CRF)
    total.backward()
    crf = DenseCrf(batch.images[0].numpy(), CRF).refine(unary_from_logits(batch.logits[0]))
    target = crf.double().clamp(min=1e-4)
    target = target / target.sum(0)
    again = batch.logits[:1].clone().requires_grad_()
    shares = floored_probabilities(again)[0]
    near = (target / shares > 0.05) & (target / shares < 20)
    cross = -(target * shares.log() * near).sum()
    cross.backward()
    assert bool(near.any()) and not bool(near.all())
    torch.testing.assert_close(logits.grad, again.grad, rtol=1e-6, atol=1e-9)
    assert float(logits.grad.abs().max()) > 1e-3


def test_padding_has_no_gradient_and_images_of_padding_do_not_count() -> None:
    batch = Batch()
    logits = batch.logits.clone().requires_grad_()
    terms = [
        seed_term(floored_probabilities(logits), batch.labels),
        *batch.expansion(logits),
        batch.constrain(logits),
    ]
    sums, counts = join_terms(terms)
    weighted_means(sums, counts, [1.0] * 5).backward()
    assert counts.tolist() == [2, 1, 2, 2, int(batch.inside.sum())]
    hidden = ~batch.inside[:, None].expand_as(logits)
    assert float(logits.grad[hidden].abs().max()) == 0
    assert bool(torch.isfinite(logits.grad).all())


def test_nothing_to_learn_is_zero_and_not_nan() -> None:
    batch = Batch()
    logits = batch.logits[2:].clone().requires_grad_()
    nothing = torch.zeros(1, 5, 6, dtype=torch.bool)
    shares = floored_probabilities(logits)
    terms = [
        seed_term(shares, torch.full((1, 5, 6), 255)),
        *expansion_terms(shares, batch.present[2:], nothing, **DECAYS),
        constrain_term(logits, batch.images[2:], nothing, CRF),
    ]
    loss = weighted_means(*join_terms(terms), [1.0] * 5)
    loss.backward()
    assert loss.item() == 0 and float(logits.grad.abs().max()) == 0


def test_extreme_logits_stay_finite() -> None:
    batch = Batch()
    logits = (1e4 * batch.logits).float().requires_grad_()
    terms = [
        seed_term(floored_probabilities(logits), batch.labels),
        *batch.expansion(logits),
        batch.constrain(logits),
    ]
    loss = weighted_means(*join_terms(terms), [1.0] * 5)
    loss.backward()
    assert bool(torch.isfinite(loss)) and bool(torch.isfinite(logits.grad).all())


def test_halves_of_a_batch_add_up() -> None:
    """What several processes rely on."""
    batch = Batch()

    def terms(rows: slice) -> tuple[Tensor, Tensor]:
        logits, inside = batch.logits[rows], batch.inside[rows]
        shares = floored_probabilities(logits)
        return join_terms(
            [
                seed_term(shares, batch.labels[rows]),
                *expansion_terms(shares, batch.present[rows], inside, **DECAYS),
                constrain_term(logits, batch.images[rows], inside, CRF),
            ]
        )

    whole = terms(slice(0, 3))
    parts = [terms(rows) for rows in (slice(0, 1), slice(1, 3))]
    assert bool((whole[0] > 0).all())
    for index in range(2):
        torch.testing.assert_close(whole[index], parts[0][index] + parts[1][index])


def test_images_are_reduced_to_pixels_of_cells() -> None:
    pixels = torch.arange(2 * 3 * 5 * 4).view(2, 3, 5, 4).to(torch.uint8)
    reduced = image_on_grid(pixels, np.array([0, 4]), np.array([1, 3]))
    assert reduced.shape == (2, 2, 2, 3)
    assert reduced[1, 1, 0].tolist() == pixels[1, :, 4, 1].tolist()


def test_shapes_that_do_not_fit_are_refused() -> None:
    batch = Batch()
    with pytest.raises(ShapeError, match=r"`labels` \(3, 5, 5\)"):
        seed_term(batch.logits, batch.labels[:, :, 1:])
    with pytest.raises(ShapeError, match=r"`inside` \(2, 5, 6\)"):
        constrain_term(batch.logits, batch.images, batch.inside[1:], CRF)
