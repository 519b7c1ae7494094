import instance_reference
import numpy as np
import torch
from pytest import mark

from wsss.runtime.instances import grouping
from wsss.runtime.instances.grouping import RunningArgmax

GRIDS = [((1, 1), (1, 1)), ((1, 1), (3, 4)), ((3, 5), (9, 17)), ((6, 4), (24, 16))]


def choose(planes, size, align, parts=1, threshold=0.25, scale=None):
    running = RunningArgmax(
        size, align, threshold=threshold, scale=scale, device=torch.device("cpu")
    )
    for some in torch.from_numpy(planes).chunk(parts):
        running.add(some)
    return running.result()


def random_planes(count, grid, seed=0):
    """Some of them too weak to win anywhere."""
    generator = np.random.default_rng(seed)
    strength = generator.uniform(0.05, 2.0, (count, 1, 1))
    return (strength * generator.random((count, *grid))).astype(np.float32)


@mark.parametrize("scale", [None, 1.0])
@mark.parametrize("align", ["reference", "corners"])
@mark.parametrize(("grid", "size"), GRIDS)
def test_winners_and_scores_equal_naive_enlargement(grid, size, align, scale):
    planes = random_planes(7, grid)
    winners, scores = choose(planes, size, align, scale=scale)
    full = np.stack([instance_reference.enlarge(plane, size, align) for plane in planes])
    full = full / (scale or full.max())
    expected = np.concatenate([np.full((1, *size), 0.25), full]).argmax(0)
    assert np.array_equal(winners, expected)
    assert winners.dtype == np.int32 and scores.dtype == np.float32
    np.testing.assert_allclose(scores, full.max(0).clip(max=1), rtol=1e-5, atol=1e-6)


@mark.parametrize("align", ["reference", "corners"])
def test_how_planes_are_portioned_changes_rounding_alone(align, monkeypatch):
    planes = random_planes(9, (5, 7), seed=1)
    expected_winners, expected_scores = choose(planes, (20, 27), align)
    for values in (1, 3 * 20 * 27):
        monkeypatch.setattr(grouping, "_VALUES_AT_ONCE", values)
        for parts in (1, 4, 9):
            winners, scores = choose(planes, (20, 27), align, parts)
            assert np.array_equal(winners, expected_winners)
            np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_the_first_of_equal_planes_wins_and_a_tie_with_the_background_is_background():
    plane = np.ones((2, 3), np.float32)
    planes = np.stack([plane / 4, plane, plane])
    assert (choose(planes, (4, 6), "reference", parts=3)[0] == 2).all()
    assert not choose(planes[:1], (4, 6), "reference", scale=1.0)[0].any()


def test_nothing_and_zeros_win_nothing():
    for planes in (np.zeros((0, 3, 4), np.float32), np.zeros((2, 3, 4), np.float32)):
        for scale in (None, 1.0):
            for threshold in (0.0, 0.25):
                winners, scores = choose(
                    planes, (9, 12), "reference", threshold=threshold, scale=scale
                )
                assert not winners.any() and not scores.any()
