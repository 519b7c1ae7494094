"""Drawing over photographs: what is tinted, what is not, and that sizes hold."""

import base64

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from wsss.errors import ShapeError
from wsss.runtime.io.image_io import decode_image
from wsss.runtime.io.palette import voc_palette
from wsss.runtime.report.pictures import (
    contact_sheet,
    data_uri,
    direction_wheel,
    draw_directions,
    draw_dots,
    draw_heat,
    draw_labels,
    encode_jpeg,
    encode_png,
    outlines,
    shrink,
    shrink_labels,
)

SIZES = [(1, 1), (1, 7), (5, 1), (9, 12)]


def _photo(size: tuple[int, int], value: int = 100) -> NDArray[np.uint8]:
    return np.full((*size, 3), value, np.uint8)


def _outlines_by_loops(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    lines = np.zeros(labels.shape, bool)
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            for other_y, other_x in ((y + 1, x), (y, x + 1)):
                if other_y >= height or other_x >= width:
                    continue
                here, there = labels[y, x], labels[other_y, other_x]
                if here == there:
                    continue
                if here not in (0, 255):
                    lines[y, x] = True
                elif there not in (0, 255):
                    lines[other_y, other_x] = True
    return lines


@pytest.mark.parametrize("size", SIZES)
def test_outlines_match_loops(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        labels = generator.choice(np.array([0, 1, 2, 255], np.uint8), size)
        np.testing.assert_array_equal(outlines(labels), _outlines_by_loops(labels))


def test_lines_between_ids() -> None:
    labels = np.array([[1, 1, 1, 2, 0], [1, 1, 1, 2, 0]], np.uint8)
    ids = np.array([[1, 255, 255, 300, 0], [1, 255, 255, 300, 0]], np.uint16)
    drawn = draw_labels(_photo((2, 5)), labels, ids=ids)
    lines = (drawn == 255).all(-1)
    assert lines.tolist() == [[True, False, True, True, False]] * 2
    without = (draw_labels(_photo((2, 5)), labels) == 255).all(-1)
    assert without.tolist() == [[False, False, True, True, False]] * 2
    with pytest.raises(ShapeError, match=r"labels are \(2, 4\), the image \(2, 5\)"):
        draw_labels(_photo((2, 5)), labels, ids=ids[:, :4])


def _labels_by_loops(
    photo: NDArray[np.uint8], labels: NDArray[np.uint8], palette: NDArray[np.uint8], opacity: float
) -> NDArray[np.uint8]:
    drawn, lines = photo.copy(), _outlines_by_loops(labels)
    brightness = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    for y, x in np.ndindex(labels.shape):
        hatched = labels[y, x] == 255 and (y + x) % 6 < 2
        if lines[y, x] or hatched:
            drawn[y, x] = 255
        elif labels[y, x] not in (0, 255):
            share = np.float32(opacity)
            colour = palette[labels[y, x]].astype(np.float32)
            drawn[y, x] = np.rint((1 - share) * np.float32(brightness[y, x]) + share * colour)
    return drawn


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opacity", [0.0, 0.6, 1.0])
def test_drawn_labels_match_loops(size: tuple[int, int], opacity: float) -> None:
    generator = np.random.default_rng(0)
    palette = generator.integers(0, 256, (256, 3), np.uint8)
    for given, expected in ((palette, palette), (None, voc_palette())):
        photo = generator.integers(0, 256, (*size, 3), np.uint8)
        labels = generator.choice(np.array([0, 1, 2, 255], np.uint8), size)
        drawn = draw_labels(photo, labels, palette=given, opacity=opacity).astype(int)
        by_loops = _labels_by_loops(photo, labels, expected, opacity)
        assert np.abs(drawn - by_loops).max() <= 1  # float32 in another order


def test_background_stays_and_objects_are_tinted_inside_a_line() -> None:
    labels = np.zeros((7, 7), np.uint8)
    labels[2:5, 2:5] = 3
    photo = _photo((7, 7))
    photo[..., 0] = 200
    drawn = draw_labels(photo, labels, opacity=0.5)
    np.testing.assert_array_equal(drawn[labels == 0], photo[labels == 0])
    grey = 130  # 0.299 * 200 + 0.587 * 100 + 0.114 * 100
    np.testing.assert_array_equal(drawn[3, 3], np.rint((grey + voc_palette()[3].astype(float)) / 2))
    assert (drawn[2, 2:5] == 255).all()
    assert (drawn[4, 2:5] == 255).all()


def test_undecided_pixels_are_hatched_without_a_line() -> None:
    labels = np.full((12, 12), 255, np.uint8)
    drawn = draw_labels(_photo((12, 12)), labels)
    share = (drawn == 255).all(-1).mean()
    assert share == pytest.approx(1 / 3)
    assert not outlines(labels).any()


def test_labels_of_another_size_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"labels are \(2, 3\), the image \(3, 2\)"):
        draw_labels(_photo((3, 2)), np.zeros((2, 3), np.uint8))


def test_heat_shows_the_greatest_score_and_a_grey_photo_where_there_is_none() -> None:
    photo = _photo((4, 4))
    photo[..., 0] = 200
    scores = np.zeros((2, 4, 4), np.float32)
    scores[1, :, 3] = 1
    scores[0, :, 2] = 0.25
    drawn = draw_heat(photo, scores, opacity=1.0).astype(int)
    red, _, blue = drawn[0, 3]
    assert red > blue + 50
    red, _, blue = drawn[0, 2]
    assert blue > red + 20
    np.testing.assert_array_equal(drawn[:, :2], np.full((4, 2, 3), drawn[0, 0, 0]))
    np.testing.assert_array_equal(draw_heat(photo, scores, opacity=0), np.full((4, 4, 3), 130))


@pytest.mark.parametrize("size", SIZES)
def test_heat_without_classes_or_on_a_coarse_grid_keeps_the_size(size: tuple[int, int]) -> None:
    assert draw_heat(_photo(size), np.zeros((0, 2, 3), np.float32)).shape == (*size, 3)
    with pytest.raises(ShapeError, match="expected"):
        draw_heat(_photo(size), np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("size", [*SIZES, (300, 200), (31, 97)])
@pytest.mark.parametrize("longest", [1, 10, 64])
def test_shrinking_image_and_labels_agree(size: tuple[int, int], longest: int) -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 5, 255], np.uint8), size)
    small, small_labels = shrink(_photo(size), longest), shrink_labels(labels, longest)
    assert small.shape[:2] == small_labels.shape
    assert max(small_labels.shape) == min(longest, max(size))
    assert set(np.unique(small_labels)) <= {0, 5, 255}
    if longest >= max(size):
        np.testing.assert_array_equal(small_labels, labels)


def test_contact_sheet_centres_pictures_and_leaves_gaps() -> None:
    sheet = contact_sheet(
        [[_photo((4, 4), 10), None], [_photo((2, 4), 20), _photo((8, 4), 30)]],
        tile=(4, 4),
        gap=1,
        colour=(200, 200, 200),
    )
    assert sheet.shape == (11, 11, 3)
    assert (sheet[1:5, 1:5] == 10).all()
    assert (sheet[1:5, 6:10] == 200).all()
    assert (sheet[7:9, 1:5] == 20).all()
    assert (sheet[6:10, 7:9] == 30).all()
    assert (sheet[::5] == 200).all()
    with pytest.raises(ShapeError, match="at least one"):
        contact_sheet([[]], tile=(4, 4))


def test_encoded_pictures_decode_to_themselves() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)
    np.testing.assert_array_equal(decode_image(encode_png(picture), "a"), picture)
    flat = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    decoded = decode_image(encode_jpeg(flat, 95), "b").astype(int)
    assert np.abs(decoded - flat).max() <= 4  # JPEG rounds colours
    with pytest.raises(ShapeError, match=r"\(5, 9\)"):
        encode_png(picture[..., 0])


def test_data_uri_names_the_format() -> None:
    png, jpeg = encode_png(_photo((2, 2))), encode_jpeg(_photo((2, 2)))
    assert data_uri(png).startswith("data:image/png;base64,")
    assert data_uri(jpeg).startswith("data:image/jpeg;base64,")
    assert base64.b64decode(data_uri(png).split(",")[1]) == png


RIGHT, DOWN, LEFT, UP = (0, 1), (1, 0), (0, -1), (-1, 0)


def test_directions_have_hues_and_lengths_brightness() -> None:
    """Around the circle of hues, from right over down: red, yellow-green, cyan, violet."""
    field = np.array([RIGHT, DOWN, LEFT, UP, (0, 0), (0, 0.5), (0, 9)], np.float32).T[:, None]
    colours = draw_directions(field, 1.0)[0]
    expected = [(255, 0, 0), (128, 255, 0), (0, 255, 255), (128, 0, 255), (0, 0, 0), (128, 0, 0)]
    assert np.abs(colours[:6].astype(int) - expected).max() <= 1
    assert colours[6].tolist() == [255, 0, 0]  # longer than the longest: no brighter
    np.testing.assert_array_equal(draw_directions(2 * field, 2.0)[0], colours)


def test_the_wheel_shows_at_each_place_the_colour_of_the_way_there() -> None:
    wheel = direction_wheel(41)
    assert wheel.shape == (41, 41, 3)
    assert wheel[20, 20].tolist() == [0, 0, 0]
    assert wheel[0, 0].tolist() == wheel[40, 0].tolist() == [255, 255, 255]
    for way, place in ((RIGHT, (20, 40)), (DOWN, (40, 20)), (LEFT, (20, 0)), (UP, (0, 20))):
        field = np.array(way, np.float32)[:, None, None]
        assert np.array_equal(wheel[place], draw_directions(field, 1.0)[0, 0])


def test_dots_lie_where_they_should_the_smallest_on_top() -> None:
    photo = _photo((40, 60))
    drawn = draw_dots(photo, np.array([[20.0, 30.0], [20.0, 30.0]]), np.array([2.0, 9.0]))
    assert np.array_equal(photo, _photo((40, 60)))  # a copy
    dot, rim = drawn[20, 30], drawn[20, 33]
    assert rim.min() > 180 > dot.min()  # the rim of the small one, softened at its edge
    assert drawn[20, 37].tolist() == dot.tolist() != [100, 100, 100]
    outside = np.hypot(*(np.indices((40, 60)) - np.array([20, 30])[:, None, None])) > 12
    assert (drawn[outside] == 100).all()
    assert np.array_equal(draw_dots(photo, np.zeros((0, 2)), np.zeros(0)), photo)


def test_directions_need_two_planes() -> None:
    with pytest.raises(ShapeError, match=r"\(3, 4, 5\), expected \(2, h, w\)"):
        draw_directions(np.zeros((3, 4, 5), np.float32), 1.0)


def test_ids_of_16_bits_shrink_like_labels() -> None:
    ids = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)
    small = shrink_labels(ids, 15)
    assert small.dtype == np.uint16 and small.max() > 255
    assert np.array_equal(small, ids[1::2, 1::2])
