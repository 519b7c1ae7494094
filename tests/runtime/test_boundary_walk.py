import instance_reference
import numpy as np
import torch
from instance_scenes import walk_settings
from pytest import mark

from wsss.runtime.refine.boundary_affinity import boundary_affinities
from wsss.runtime.refine.pseudo_labels import walk_planes


def walked_within(boundary, planes, settings):
    affinity, damping = boundary_affinities(boundary[None], settings)
    return walk_planes(planes, affinity, settings, damping)


@mark.parametrize("num_planes", [1, 3])
@mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (8, 11)])
def test_walk_equals_damped_dense_walk(size, num_planes):
    generator = torch.Generator().manual_seed(0)
    planes = torch.rand(num_planes, *size, generator=generator)
    boundary = torch.rand(1, *size, generator=generator)
    found = walked_within(boundary, planes, walk_settings(beta=3.0, steps=64))
    expected = instance_reference.boundary_walk(planes.double(), boundary, 5, 3.0, 64)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert bool((found >= 0).all())


def test_scores_stay_on_their_side_of_a_wall():
    boundary = torch.zeros(1, 6, 9)
    boundary[:, :, 4] = 1
    planes = torch.zeros(2, 6, 9)
    planes[0, 2, 1] = planes[1, :, 4] = 1
    walked = walked_within(boundary, planes, walk_settings())
    assert bool((walked[0, :, :4] > 0.01).all()) and not walked[0, :, 4:].any()
    assert not walked[1].any()  # scores on the wall are damped to nothing
