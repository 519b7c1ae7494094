"""Rings filled again, as training code and label tools fill them, are the regions again."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from labelled_images import LABELS, Labels, blobs, objects
from PIL import Image, ImageDraw

from wsss.runtime.bulk.formats.polygons import Ring, class_rings

shapes = st.tuples(st.integers(1, 14), st.integers(1, 14))
label_maps = shapes.flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 1, 2, 255]))
)


def filled(rings: list[tuple[int, Ring]], shape: tuple[int, ...]) -> Labels:
    """As ultralytics fills its segments: cut to whole pixels, then OpenCV."""
    label = np.zeros(shape, np.uint8)
    for value, ring in rings:
        cv2.fillPoly(label, [(ring + 0.5).astype(np.int32)], value)
    return label


def drawn(rings: list[tuple[int, Ring]], shape: tuple[int, ...]) -> Labels:
    """As LabelMe fills its polygons: Pillow, together with the outline."""
    picture = Image.fromarray(np.zeros(shape, np.uint8))
    for value, ring in rings:
        corners = [tuple(corner) for corner in (ring + 0.5).tolist()]
        ImageDraw.Draw(picture).polygon(corners, outline=value, fill=value)
    return np.array(picture)


@given(label_maps | st.sampled_from(list(LABELS.values())))
def test_rings_give_the_label_map_back(label: Labels) -> None:
    rings = list(class_rings(label))
    np.testing.assert_array_equal(filled(rings, label.shape), objects(label))
    np.testing.assert_array_equal(drawn(rings, label.shape), objects(label))


@given(label_maps)
def test_rings_turn_at_every_corner_and_stay_on_their_class(label: Labels) -> None:
    for value, ring in class_rings(label):
        assert ring.dtype == np.int32 and len(ring) >= 3
        assert (label[ring[:, 1], ring[:, 0]] == value).all()
        following = np.roll(ring, -1, 0) - ring
        # Along rows, columns or diagonals only: there a line of pixels leaves no choice.
        assert ((following == 0).any(1) | (abs(following[:, 0]) == abs(following[:, 1]))).all()


@pytest.mark.parametrize("seed", range(5))
def test_large_blobs_with_holes(seed: int) -> None:
    label = blobs(300, 420, seed)
    rings = list(class_rings(label))
    holes = [
        cv2.findContours((label == value).astype(np.uint8), cv2.RETR_CCOMP, 2)[1][0, :, 3].max()
        for value in (1, 2)
    ]
    assert max(holes) >= 0  # the case that this is about
    np.testing.assert_array_equal(filled(rings, label.shape), objects(label))


def test_a_square_has_four_corners_and_each_region_a_ring() -> None:
    label = np.zeros((6, 9), np.uint8)
    label[1:4, 1:5] = 2
    label[5, 8] = 1
    (first, pixel), (second, square) = class_rings(label)
    assert (first, second) == (1, 2)
    assert pixel.tolist() == [[8, 5]] * 3
    assert sorted(square.tolist()) == [[1, 1], [1, 3], [4, 1], [4, 3]]


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    assert len(list(class_rings(np.eye(5, dtype=np.uint8)))) == 1
