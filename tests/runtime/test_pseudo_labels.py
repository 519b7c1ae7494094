"""From CAMs to walked maps against the dense walk: damping, background, division."""

import numpy as np
import reference
import torch
from numpy.testing import assert_allclose
from pytest import mark

from wsss.runtime.io.score_maps import ScoreMaps
from wsss.runtime.refine.pseudo_labels import WalkSettings, walk_scores

RADIUS, STEPS = 3, 16
GRID = (5, 7)


def settings(background):
    return WalkSettings(
        beta=1.0,
        steps=STEPS,
        radius=RADIUS,
        borders="full",
        tolerance=1e-6,
        background=background,
        alpha=4.0,
        threshold=0.25,
        align="reference",
        maps_on_grid=background == "constant",
    )


def cams(num_classes=2):
    """CAMs on the grid of the walk, of an image of four pixels a cell."""
    scores = np.random.default_rng(0).random((num_classes, *GRID), np.float32)
    return ScoreMaps(np.arange(num_classes), scores, (4 * GRID[0], 4 * GRID[1]))


def affinity_and_boundary():
    generator = torch.Generator().manual_seed(1)
    affinity = reference.random_affinity(generator, 1, *GRID, RADIUS)
    return affinity, torch.rand(1, 1, *GRID, generator=generator)


@mark.parametrize("damped", [True, False])
def test_scores_are_damped_before_they_walk(damped):
    maps, (affinity, boundary) = cams(), affinity_and_boundary()
    damping = 1 - boundary if damped else None
    found = walk_scores(maps, affinity.float(), settings("constant"), damping)
    start = maps.scores * (1 - boundary[0].numpy()) if damped else maps.scores
    walked = reference.walk(start, affinity[0], RADIUS, STEPS)
    assert_allclose(found.scores, walked / walked.max(), atol=1e-4)
    assert found.background is None and found.scores.max() > 1 - 1e-4


def test_a_boundary_everywhere_leaves_nothing():
    """And nothing divided by nothing stays nothing."""
    maps, (affinity, boundary) = cams(), affinity_and_boundary()
    nothing = torch.zeros_like(boundary)
    found = walk_scores(maps, affinity.float(), settings("constant"), nothing)
    assert found.scores.shape == (2, *GRID) and not found.scores.any()


def test_an_image_without_classes_has_no_maps():
    affinity, boundary = affinity_and_boundary()
    found = walk_scores(cams(0), affinity.float(), settings("constant"), 1 - boundary)
    assert found.scores.shape == (0, *GRID)
