"""Polygons and run-length codes against loops over every pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsss.errors import DataError
from wsss.training.data.coco_masks import CocoMask, Region, decode_runs, fill_polygon, rasterise


def naive_polygon(polygon: list[float], height: int, width: int) -> NDArray[np.bool_]:
    """A ray from every pixel's centre to the left, edge by edge."""
    corners = list(zip(polygon[::2], polygon[1::2], strict=True))
    inside = np.zeros((height, width), bool)
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5, row + 0.5
            for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
                if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * ((x1 - x0) / (y1 - y0)) <= x:
                    inside[row, column] ^= True
    return inside


def naive_text(runs: list[int]) -> str:
    """The COCO API's writer: groups of five bits, lowest first, with a sign in the last."""
    text = ""
    for place, run in enumerate(runs):
        value, more = (run - runs[place - 2] if place > 2 else run), True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr((bits | 32 if more else bits) + 48)
    return text


def naive_runs(inside: NDArray[np.bool_]) -> list[int]:
    runs, current = [0], False
    for column in range(inside.shape[1]):
        for row in range(inside.shape[0]):
            if inside[row, column] != current:
                runs.append(0)
                current = not current
            runs[-1] += 1
    return runs


sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
# Quarters hit pixel centres and corners exactly, where the rule of the boundary decides.
coordinates = st.integers(-12, 60).map(lambda value: value / 4) | st.floats(-3, 15)


@given(sizes, st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9))
def test_polygons(size: tuple[int, int], corners: list[tuple[float, float]]) -> None:
    polygon = [value for corner in corners for value in corner]
    np.testing.assert_array_equal(fill_polygon(polygon, *size), naive_polygon(polygon, *size))


def test_whole_pixels_are_filled_exactly() -> None:
    inside = fill_polygon([1, 1, 4, 1, 4, 3, 1, 3], 5, 6)
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    np.testing.assert_array_equal(inside, expected)


def test_parts_add_up() -> None:
    square = [0.0, 0, 2, 0, 2, 2, 0, 2]
    assert rasterise([square, square], 3, 3).sum() == 4


@given(sizes, st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.5, 1]))
def test_run_lengths(size: tuple[int, int], seed: int, share: float) -> None:
    inside = np.random.default_rng(seed).random(size) < share
    runs = naive_runs(inside)
    for counts in (runs, naive_text(runs)):
        found = decode_runs({"counts": counts, "size": list(size)}, *size)
        np.testing.assert_array_equal(found, inside)


def test_long_runs_as_text() -> None:
    runs = [100_000, 3, 250_000, 1, 49_996]
    found = decode_runs({"counts": naive_text(runs), "size": [400, 1000]}, 400, 1000)
    assert np.flatnonzero(found.T).tolist() == [100_000, 100_001, 100_002, 350_003]


@pytest.mark.parametrize(
    "shape",
    [
        None,
        "text",
        [3],
        [[0, 0, 1, 1]],
        [[0, 0, 1, 1, 2]],
        [[0, 0, 1, 1, 2, float("nan")]],
        [[0, 0, 1, 1, 2, float("inf")]],
        [[0, 0, 1, 1, 2, 10**400]],
        [[0, 0, 1, 1, 2, "3"]],
        [[0, 0, 1, 1, 2, True]],
        {},
        {"counts": [12]},
        {"counts": [12], "size": [4, 3]},
        {"counts": [11], "size": [3, 4]},
        {"counts": [13, -1], "size": [3, 4]},
        {"counts": [12.0], "size": [3, 4]},
        {"counts": [10**30], "size": [3, 4]},
        {"counts": "P", "size": [3, 4]},
        {"counts": "o" * 50, "size": [3, 4]},
        {"counts": "\u2028", "size": [3, 4]},
        {"counts": None, "size": [3, 4]},
    ],
)
def test_refused(shape: object) -> None:
    with pytest.raises(DataError):
        rasterise(shape, 3, 4)
    mask = CocoMask("image 'a'", 3, 4, (Region(1, shape),), "")
    with pytest.raises(DataError, match=r"^image 'a': "):
        mask.load()


@pytest.mark.parametrize("size", [(0, 4), (-3, -4), (10**9, 10**9)])
def test_sizes_that_no_image_has(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="expected at most"):
        CocoMask("image 'a'", *size, (), "").load()
