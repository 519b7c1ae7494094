import instance_reference
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from instance_scenes import ideal_displacement, outline, score_maps, walk_settings
from pytest import mark, raises
from torch.utils._python_dispatch import TorchDispatchMode

from wsss.errors import ConfigError, DataError, ShapeError
from wsss.runtime.instances import grouping
from wsss.runtime.instances.grouping import (
    boundary_instances,
    cam_instances,
    group_images,
    group_instances,
)
from wsss.runtime.instances.settings import InstanceSettings
from wsss.runtime.io.score_maps import ScoreMaps
from wsss.runtime.refine.pseudo_labels import scores_on_grid

SETTINGS = InstanceSettings()


def touching():
    """Two objects of one class side by side, one of another class below them."""
    objects = np.zeros((40, 48), int)
    objects[3:20, 4:24], objects[3:20, 24:44] = 1, 2
    objects[20:37, 10:40] = 3
    return objects, {1: 4, 2: 4, 3: 0}


def random_image(height, width, num_classes, seed, align="reference", stride=4):
    """Maps, boundary and displacement that agree on nothing."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_classes, height, width, generator=generator)
    scores = (scores * 1.6 - 0.6).clamp(min=0)
    boundary = torch.rand(1, height, width, generator=generator) ** 2
    displacement = 2.5 * torch.randn(2, height, width, generator=generator)
    if align == "corners":
        size = ((height - 1) * stride + 1, (width - 1) * stride + 1)
    else:
        size = tuple(side * stride - (side > 1) for side in (height, width))
    classes = np.arange(num_classes, dtype=np.int64) * 3 + 1
    return ScoreMaps(classes, scores.numpy(), size), boundary, displacement


def require_equal(found, expected):
    """`found` are the instances [(mask, class, score)] in this order."""
    assert len(found) == len(expected)
    ids = np.zeros(found.ids.shape, int)
    for number, (mask, _, _) in enumerate(expected, start=1):
        ids[mask] = number
    assert np.array_equal(found.ids, ids)
    assert found.classes.tolist() == [index for _, index, _ in expected]
    np.testing.assert_allclose(found.scores, [score for _, _, score in expected], atol=1e-5)


def naive_group(maps, boundary, displacement, walk, chosen):
    centroids = np.rint(instance_reference.refine(displacement.numpy(), chosen.steps)).astype(int)
    parts = instance_reference.clusters(displacement.numpy(), centroids, chosen.centroid_radius)
    return naive_walk(maps, boundary, parts, walk, chosen)


def naive_walk(maps, boundary, parts, walk, chosen):
    scores = [
        instance_reference.resize(plane, boundary.shape[1:], walk.align)
        for plane in maps.scores.astype(float)
    ]
    planes = instance_reference.instance_planes(scores, parts)
    walked = instance_reference.boundary_walk(
        planes, boundary.numpy(), walk.radius, walk.beta, walk.steps
    )
    classes = np.repeat(maps.classes, parts.max() + 1)
    return instance_reference.label(
        walked, classes, maps.size, walk.align, chosen.threshold, chosen.min_area
    )


@mark.parametrize("align", ["reference", "corners"])
@mark.parametrize(("height", "width"), [(1, 1), (1, 9), (8, 1), (7, 10), (12, 9)])
def test_whole_grouping_equals_naive_loops(height, width, align):
    maps, boundary, displacement = random_image(height, width, 2, seed=width, align=align)
    # Few steps, because random fields throw single precision apart in the end.
    chosen = InstanceSettings(steps=5, min_area=0.02)
    walk = walk_settings(align=align, beta=3.0, steps=64)
    found = group_instances(maps, boundary, displacement, walk, chosen)
    require_equal(found, naive_group(maps, boundary, displacement, walk, chosen))
    parts = np.zeros((height, width), int)
    require_equal(
        boundary_instances(maps, boundary, walk, chosen),
        naive_walk(maps, boundary, parts, walk, chosen),
    )


@mark.parametrize("align", ["reference", "corners"])
@mark.parametrize("step", [0.5, 2])
def test_cams_of_another_grid_come_to_that_of_the_walk_as_those_of_labels_do(align, step):
    maps, boundary, displacement = random_image(9, 11, 2, seed=4, align=align)
    scores = maps.scores[:, ::2, ::2] if step == 2 else maps.scores.repeat(2, 1).repeat(2, 2)
    other = ScoreMaps(maps.classes, scores.copy(), maps.size)
    chosen = InstanceSettings(steps=5)
    walk = walk_settings(align=align, beta=3.0, maps_on_grid=False)
    moved = ScoreMaps(maps.classes, scores_on_grid(other, (9, 11), walk).numpy(), maps.size)
    found = group_instances(other, boundary, displacement, walk, chosen)
    require_equal(found, naive_group(moved, boundary, displacement, walk, chosen))


@mark.parametrize("align", ["reference", "corners"])
def test_segments_of_cams_equal_naive_loops(align):
    maps, _, _ = random_image(7, 10, 3, seed=2, align=align)
    chosen = InstanceSettings(threshold=0.4, min_area=0.02)
    expected = instance_reference.label(
        maps.scores.astype(float), maps.classes, maps.size, align, 0.4, 0.02, scale=1.0
    )
    require_equal(cam_instances(maps, align, chosen), expected)


def test_touching_objects_of_one_class_are_parted_by_displacement_alone():
    objects, class_of = touching()
    maps = score_maps(objects, class_of)
    boundary = outline(np.array([0, 5, 5, 1])[objects])  # of classes, as networks learn it
    arguments = (maps, boundary)
    alone = cam_instances(maps, "reference", SETTINGS)
    walked = boundary_instances(*arguments, walk_settings(), SETTINGS)
    grouped = group_instances(*arguments, ideal_displacement(objects), walk_settings(), SETTINGS)
    assert sorted(alone.classes) == sorted(walked.classes) == [0, 4]
    assert sorted(grouped.classes) == [0, 4, 4]
    full = objects.repeat(4, 0).repeat(4, 1)
    for number, index in class_of.items():
        overlaps = [
            ((grouped.ids == row + 1) & (full == number)).sum()
            / ((grouped.ids == row + 1) | (full == number)).sum()
            for row in range(3)
        ]
        best = int(np.argmax(overlaps))
        # The walk damps scores on the outline, one cell wide.
        assert overlaps[best] > 0.7 and grouped.classes[best] == index
        assert grouped.scores[best] > 0.5


@mark.parametrize("align", ["reference", "corners"])
def test_companions_have_no_influence_and_results_repeat(align):
    shapes = [(7, 10, 2), (12, 9, 1), (1, 1, 1), (5, 5, 0), (9, 14, 3)]
    images = [random_image(*shape, seed=5, align=align) for shape in shapes]
    walk = walk_settings(align=align)

    def group(chosen):
        maps, boundaries, displacements = zip(*chosen, strict=True)
        return group_images(maps, boundaries, displacements, walk, SETTINGS)

    together, turned = group(images), group(images[::-1])[::-1]
    for image, one, other in zip(images, together, turned, strict=True):
        alone = group_instances(*image, walk, SETTINGS)
        for found in (one, other):
            assert np.array_equal(found.ids, alone.ids)
            assert np.array_equal(found.classes, alone.classes)
            assert np.array_equal(found.scores, alone.scores)


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    num_classes=st.integers(0, 3),
    fragments=st.sampled_from(["keep", "drop"]),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_image_has_a_sound_result(height, width, num_classes, fragments, seed):
    image = random_image(height, width, num_classes, seed)
    chosen = InstanceSettings(fragments=fragments)
    found = group_instances(*image, walk_settings(), chosen)
    assert found.ids.shape == image[0].size
    assert np.unique(found.ids[found.ids > 0]).tolist() == list(range(1, len(found) + 1))
    assert np.isfinite(found.scores).all()
    assert (found.scores >= 0).all() and (found.scores <= 1).all()
    assert set(found.classes) <= set(image[0].classes)
    if fragments == "drop":
        assert (found.scores > chosen.threshold).all()


@mark.parametrize("align", ["reference", "corners"])
@mark.parametrize("axis", [0, 1])
def test_a_mirrored_image_gives_mirrored_instances(axis, align):
    objects, class_of = touching()
    stride = 4
    maps = score_maps(objects, class_of, stride)
    size = tuple(side * stride - (stride - 1) * (align == "corners") for side in objects.shape)
    maps = ScoreMaps(maps.classes, maps.scores, size)
    # An outline and a pull that are no mirror images of themselves.
    boundary = outline(objects) * torch.rand(
        1, *objects.shape, generator=torch.Generator().manual_seed(0)
    )
    displacement = ideal_displacement(objects) + 0.01
    mirrored = displacement.flip(1 + axis).clone()
    mirrored[axis] *= -1
    walk = walk_settings(align=align)
    found = group_instances(maps, boundary, displacement, walk, SETTINGS)
    flipped = ScoreMaps(maps.classes, np.flip(maps.scores, 1 + axis).copy(), size)
    other = group_instances(flipped, boundary.flip(1 + axis), mirrored, walk, SETTINGS)
    assert len(found) == len(other) >= 3  # a leak may cost a fragment more
    ids = np.flip(other.ids, axis)
    # Numbers follow the first cell of a cluster, which the mirror changes.
    pairs = {(int(a), int(b)) for a, b in zip(found.ids.ravel(), ids.ravel(), strict=True)}
    assert len(pairs) == len(found) + 1
    for one, two in pairs - {(0, 0)}:
        assert found.classes[one - 1] == other.classes[two - 1]
        np.testing.assert_allclose(found.scores[one - 1], other.scores[two - 1], atol=1e-4)


@mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_of_other_precision_are_computed_in_float32(dtype):
    maps, boundary, displacement = random_image(6, 8, 2, seed=3)
    boundary, displacement = boundary.to(dtype), displacement.to(dtype)
    chosen, walk = InstanceSettings(steps=3), walk_settings()
    found = group_instances(maps, boundary, displacement, walk, chosen)
    expected = group_instances(maps, boundary.float(), displacement.float(), walk, chosen)
    assert len(found) and found.scores.dtype == np.float32
    assert np.array_equal(found.ids, expected.ids)
    assert np.array_equal(found.scores, expected.scores)


def test_zero_cams_and_images_without_classes_have_no_instances():
    maps, boundary, displacement = random_image(6, 8, 2, seed=0)
    zeros = ScoreMaps(maps.classes, np.zeros_like(maps.scores), maps.size)
    none = maps.select(np.zeros(0, np.int64))
    for empty in (zeros, none):
        for threshold in (0.0, 0.25):
            chosen = InstanceSettings(threshold=threshold)
            for found in (
                group_instances(empty, boundary, displacement, walk_settings(), chosen),
                boundary_instances(empty, boundary, walk_settings(), chosen),
                cam_instances(empty, "reference", chosen),
            ):
                assert len(found) == 0 and not found.ids.any()
                assert found.ids.shape == maps.size


def test_how_planes_are_portioned_changes_rounding_alone(monkeypatch):
    image = random_image(9, 11, 2, seed=8)
    expected = group_instances(*image, walk_settings(), SETTINGS)
    monkeypatch.setattr(grouping, "_VALUES_AT_ONCE", 1)
    found = group_instances(*image, walk_settings(), SETTINGS)
    assert np.array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


def test_wrong_input_is_refused():
    maps, boundary, displacement = random_image(6, 8, 2, seed=0)
    walk = walk_settings()
    assert group_images([], [], [], walk, SETTINGS) == []
    with raises(ShapeError, match="1 images have 0 boundary maps and 1 displacement fields"):
        group_images([maps], [], [displacement], walk, SETTINGS)
    with raises(ShapeError, match=r"`boundary` is \(6, 8\), expected \(1, h, w\)"):
        boundary_instances(maps, boundary[0], walk, SETTINGS)
    with raises(ShapeError, match=r"`displacement` is \(2, 6, 7\), expected \(2, 6, 8\)"):
        group_instances(maps, boundary, displacement[..., 1:], walk, SETTINGS)
    with raises(DataError, match="`displacement` holds NaN"):
        group_instances(maps, boundary, displacement / 0, walk, SETTINGS)
    with raises(DataError, match=r"`boundary` spans .* expected values in \[0, 1\]"):
        group_instances(maps, boundary + 1, displacement, walk, SETTINGS)
    with raises(ConfigError, match=r"`steps` is -1.*`min_area` is nan.*`fragments` is 'hide'"):
        InstanceSettings(steps=-1, min_area=float("nan"), fragments="hide")


class LargestIndices(TorchDispatchMode):
    """Values of the largest tensor of indices that any operation of torch gives."""

    def __init__(self):
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, torch.Tensor) and each.dtype == torch.int64:
                self.values = max(self.values, each.numel())
        return result


def test_indices_take_no_more_memory_with_more_classes():
    largest = []
    for num_classes in (1, 20):
        maps, boundary, displacement = random_image(12, 14, num_classes, 0)
        maps.scores[:] += 0.5  # each class everywhere
        walk = walk_settings(steps=2, radius=2)
        with LargestIndices() as indices:
            found = group_instances(maps, boundary, displacement, walk, SETTINGS)
        assert len(found) > 0
        largest.append(indices.values)
    assert largest[1] <= largest[0]
