"""By how much the walk changes labels: against loops in float64, and where the eye can tell."""

import numpy as np
import pytest
import reference
import torch

from wsss.runtime.io.score_maps import ScoreMaps
from wsss.runtime.refine.feature_affinity import affinity_from_features
from wsss.runtime.refine.pseudo_labels import WalkSettings, walk_change, walk_scores

RADIUS, ALPHA, THRESHOLD = 3, 2.0, 0.45


def settings(background="constant", **changes):
    common = {"beta": 3.0, "steps": 16, "radius": RADIUS, "borders": "full", "tolerance": 1e-7}
    rule = {"background": background, "alpha": ALPHA, "threshold": THRESHOLD, "align": "corners"}
    return WalkSettings(**{**common, **rule, **changes})


def maps_of(scores):
    """Maps on the grid of the image itself, so that no resizing stands between them and a walk."""
    scores = np.asarray(scores, np.float32)
    return ScoreMaps(np.arange(len(scores)), scores, scores.shape[1:])


def change(maps, features, given):
    affinity = affinity_from_features(
        features, radius=given.radius, beta=given.beta, borders=given.borders
    )
    return walk_change(maps, walk_scores(maps, affinity, given), given)


@pytest.mark.parametrize("align", ["corners", "reference"])
@pytest.mark.parametrize("background", ["constant", "power"])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 4), (9, 11)])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_share_equals_loops(num_classes, size, background, align):
    generator = torch.Generator().manual_seed(num_classes)
    features = torch.rand(1, 6, *size, generator=generator) * 2
    # As CAMs are: each class reaches 1 somewhere, and is small nearly everywhere.
    scores = torch.rand(num_classes, *size, generator=generator) ** 3
    scores = (scores / scores.amax((1, 2), keepdim=True)).numpy()
    given = settings(background, align=align)
    affinity = np.exp(-given.beta * reference.distances(features[0].numpy(), RADIUS, "full"))
    planes = np.asarray(scores, np.float64)
    if background == "power":
        planes = np.concatenate([(1 - planes.max(0, keepdims=True)) ** ALPHA, planes])
    walked = reference.walk(planes, affinity, RADIUS, given.steps)
    threshold = THRESHOLD if background == "constant" else None
    expected = reference.changed_share(planes, walked, threshold)
    assert change(maps_of(scores), features, given) == pytest.approx(expected, abs=1e-9)
    if size == (9, 11):
        assert 0.05 < expected < 0.95


def test_a_walk_that_floods_a_row_changes_all_cells_but_its_source():
    maps, everywhere_alike = maps_of([[[1, 0, 0, 0]]]), torch.zeros(1, 2, 1, 4)
    assert change(maps, everywhere_alike, settings(steps=256)) == 3 / 4
    wall = torch.tensor([0.0, 0.0, 99.0, 99.0]).expand(1, 2, 1, 4)
    assert change(maps, wall, settings(steps=256)) == 1 / 4


@pytest.mark.parametrize("background", ["constant", "power"])
def test_a_walk_that_stays_where_it_is_changes_nothing(background):
    """At any threshold, for before and after are labelled by the same one."""
    generator = torch.Generator().manual_seed(0)
    maps = maps_of(torch.rand(2, 6, 7, generator=generator))
    apart = torch.arange(42.0).reshape(1, 1, 6, 7) * 99
    for threshold in (0.05, 0.5, 0.95):
        assert change(maps, apart, settings(background, threshold=threshold)) == 0


@pytest.mark.parametrize("background", ["constant", "power"])
def test_nothing_changes_where_nothing_is(background):
    features = torch.rand(1, 2, 3, 4)
    assert change(maps_of(np.zeros((0, 3, 4))), features, settings(background)) == 0
    assert change(maps_of(np.zeros((2, 3, 4))), features, settings(background)) == 0
