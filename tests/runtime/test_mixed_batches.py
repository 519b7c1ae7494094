import reference
import torch
from pytest import mark, raises

from wsss.errors import ShapeError
from wsss.runtime.refine.mixed_batches import propagate_images
from wsss.runtime.refine.random_walk import propagate

SIZES = [(2, 9, 14), (3, 12, 10), (1, 1, 1), (0, 5, 5), (2, 3, 16)]


def images():
    generator = torch.Generator().manual_seed(3)
    scores = [torch.rand(*size, generator=generator) for size in SIZES]
    affinities = [
        reference.random_affinity(generator, 1, *size[1:])[0].float().sqrt() for size in SIZES
    ]
    return scores, affinities


@mark.parametrize("form", ["torch", "native"])
def test_companions_and_padding_do_not_change_a_result(form):
    if form == "native":
        from pytest import importorskip

        importorskip("numba")
    scores, affinities = images()
    together = propagate_images(scores, affinities, form=form)
    for maps, affinity, found in zip(scores, affinities, together, strict=True):
        alone = propagate(maps[None], affinity[None], form=form)[0]
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)
    turned = propagate_images(scores[::-1], affinities[::-1], form=form)[::-1]
    for one, other in zip(together, turned, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_wrong_input_is_refused():
    scores, affinities = images()
    assert propagate_images([], []) == []
    with raises(ShapeError, match="5 images have scores and 4 affinities"):
        propagate_images(scores, affinities[1:])
    with raises(ShapeError, match=r"image 1: `scores` are \(3, 12, 10\) and `affinity` \(34, 1, 1"):
        propagate_images(scores, [affinities[0], affinities[2], *affinities[2:]])
