import instance_reference
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from instance_scenes import ideal_displacement
from pytest import mark

from wsss.runtime.instances.displacement import cluster_cells, refine_centroids


def clustered(field, **changes):
    """(h, w) clusters of a (2, h, w) field."""
    centroids = refine_centroids(field[None])[0]
    return cluster_cells(field.numpy(), centroids.numpy(), **changes)


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    strength=st.floats(0, 6),
    radius=st.floats(0.1, 6),
    seed=st.integers(0, 2**31 - 1),
)
def test_clusters_equal_naive_loops(height, width, strength, radius, seed):
    generator = np.random.default_rng(seed)
    field = (strength * generator.standard_normal((2, height, width))).astype(np.float32)
    rows, columns = (generator.integers(0, side, (height, width)) for side in (height, width))
    centroids = np.stack([rows, columns])
    found = cluster_cells(field, centroids, radius=radius)
    assert np.array_equal(found, instance_reference.clusters(field, centroids, radius))
    numbers, first = np.unique(found, return_index=True)
    assert numbers.tolist() == list(range(len(numbers)))
    assert (np.diff(first) > 0).all()


def test_touching_objects_are_parted():
    objects = np.zeros((20, 44), int)
    objects[2:18, 3:22], objects[2:18, 22:41] = 1, 2
    found = clustered(ideal_displacement(objects))
    assert np.array_equal(found, objects)  # background comes first


def test_cells_whose_centroids_are_nowhere_calm_are_one_cluster():
    field = torch.zeros(2, 1, 9)
    field[1, 0] = torch.tensor([0, 9, -9, 0, 9, -9, 0, 0, 0])  # the walls throw to either end
    found = clustered(field, radius=0.5)
    assert found.tolist() == [[0, 1, 0, 2, 1, 0, 1, 1, 1]]
    centroids = np.array([[[0] * 9], [[0, 1, 2, 3, 4, 5, 6, 7, 8]]])
    alone = cluster_cells(field.numpy(), centroids, radius=0.5)
    assert alone.tolist() == [[0, 1, 1, 2, 1, 1, 3, 3, 3]]
    assert cluster_cells(field.numpy() + 3, centroids).tolist() == [[0] * 9]


@mark.parametrize(("length", "is_calm"), [(2.5, False), (np.nextafter(2.5, 0), True)])
def test_radius_is_strict_and_exact(length, is_calm):
    field = np.array([[[0.0, 9.0, 0.0]], [[length, 0.0, 0.0]]])
    centroids = np.array([[[0, 0, 0]], [[0, 1, 2]]])
    assert cluster_cells(field, centroids).tolist() == ([[0, 1, 2]] if is_calm else [[0, 0, 1]])
