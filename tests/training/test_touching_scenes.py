"""Generated scenes of touching objects: exact, and such that masks of a class grow together."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsss.training.data.readers import read_image_set
from wsss.training.demo.figures import FIGURES
from wsss.training.demo.run import DEMO_CLASSES, write_demo_scenes
from wsss.training.demo.scenes import Scene, draw_touching_scene

SIZE = (120, 144)


def _scenes(count: int) -> list[Scene]:
    return [
        draw_touching_scene(np.random.default_rng((5, index)), SIZE, index % len(FIGURES))
        for index in range(count)
    ]


def _touching(ids: NDArray[np.uint8], mask: NDArray[np.uint8]) -> bool:
    """Whether two objects of one class have neighbouring pixels."""
    for axis in (0, 1):
        (one, other), (here, there) = (
            (np.delete(plane, -1, axis), np.delete(plane, 0, axis)) for plane in (ids, mask)
        )
        if ((one != other) & (here == there) & (here > 0)).any():
            return True
    return False


def test_ids_and_classes_agree() -> None:
    for index, scene in enumerate(_scenes(24)):
        assert scene.image.shape == (*SIZE, 3)
        assert np.array_equal(scene.ids > 0, scene.mask > 0)
        for number in np.unique(scene.ids[scene.ids > 0]):
            assert len(np.unique(scene.mask[scene.ids == number])) == 1
        assert index % len(FIGURES) in scene.labels or not scene.labels
        assert set(scene.labels) == set((np.unique(scene.mask[scene.mask > 0]) - 1).tolist())


def test_most_scenes_have_objects_of_one_class_that_touch() -> None:
    scenes = _scenes(48)
    touching = [_touching(scene.ids, scene.mask) for scene in scenes]
    assert 0.6 < np.mean(touching) < 0.95
    for scene, found in zip(scenes, touching, strict=True):
        parts = sum(
            cv2.connectedComponents((scene.mask == label + 1).astype(np.uint8), connectivity=4)[0]
            - 1
            for label in scene.labels
        )
        objects = sum(
            cv2.connectedComponents((scene.ids == number).astype(np.uint8), connectivity=4)[0] - 1
            for number in np.unique(scene.ids[scene.ids > 0])
        )
        assert (parts < objects) == found


def test_no_object_hides_another() -> None:
    areas = np.concatenate([np.bincount(scene.ids.ravel())[1:] for scene in _scenes(24)])
    assert areas.min() > 0.01 * SIZE[0] * SIZE[1]


def test_few_scenes_have_no_object() -> None:
    empty = [not scene.labels for scene in _scenes(96)]
    assert 0.05 < np.mean(empty) < 0.2


def test_the_set_is_read_with_its_objects(tmp_path: Path) -> None:
    write_demo_scenes(tmp_path, train=6, val=2, seed=0, size=SIZE, draw=draw_touching_scene)
    images = read_image_set(tmp_path)
    assert images.findings == () and images.classes == DEMO_CLASSES
    for sample in images.samples:
        truth = sample.load_instances()
        mask = sample.load_mask()
        assert not truth.void.any()
        assert np.array_equal(np.append(0, truth.classes + 1)[truth.ids], mask)
        assert set(truth.classes.tolist()) == set(sample.labels or ())


def test_same_generator_same_scene() -> None:
    first, second = _scenes(2), _scenes(2)
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.image, other.image) and np.array_equal(one.ids, other.ids)
    assert not np.array_equal(first[0].image, first[1].image)
