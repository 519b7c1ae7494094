"""Which files `wsss label` takes, and which image-level labels it gives them."""

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from wsss.errors import DataError, ServerError
from wsss.runtime.image_labels import read_label_table
from wsss.runtime.labelling import find_images, label_images


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((3, 4, 3), 90, np.uint8))


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    (tmp_path / "._a.jpg").write_bytes(b"what a Mac leaves")
    assert [image.name for image in find_images([tmp_path])] == ["a.jpg"]


def test_a_bare_name_in_the_label_file_counts_where_no_other_input_shares_it(
    tmp_path: Path,
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,labels\nx.png,cat\n")
    write_image(tmp_path / "images" / "one" / "x.png")
    given: list[list[int] | None] = []

    def predict(image: np.ndarray, labels: list[int] | None) -> np.ndarray:
        given.append(labels)
        return np.zeros(image.shape[:2], np.uint8)

    def label(out: str) -> None:
        images = find_images([tmp_path / "images"])
        label_images(
            images,
            predict,
            tmp_path / out,
            provenance={},
            classes=["dog", "cat"],
            labels=read_label_table(table),
        )

    label("first")
    assert given == [[1]]
    write_image(tmp_path / "images" / "two" / "x.png")
    with pytest.raises(DataError, match=r"does not mention image 'one/x\.png'"):
        label("second")


SIZES = ((6, 9), (5, 7), (9, 6))


def of_sizes(folder: Path, count: int) -> None:
    for number in range(count):
        height, width = SIZES[number % 3]
        path = folder / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((height, width, 3), number, np.uint8))
    (folder / "07.png").write_bytes(b"no image")


def test_images_under_way_at_once_change_nothing_that_is_written(tmp_path: Path) -> None:
    of_sizes(tmp_path / "images", 30)
    seen: dict[int, list[tuple[int, ...]]] = {}

    def label(in_flight: int) -> dict[str, bytes]:
        shapes = seen.setdefault(in_flight, [])

        def predict(image: np.ndarray, labels: list[int] | None) -> np.ndarray:
            shapes.append(image.shape[:2])
            if image[0, 0, 0] in (3, 20):
                raise DataError(f"image of {image[0, 0, 0]}")
            return (image[..., 0] % 5).astype(np.uint8)

        out = tmp_path / str(in_flight)
        images = find_images([tmp_path / "images"])
        options = {"provenance": {}, "classes": ["dog"], "in_flight": in_flight}
        for kept in (0, 27):
            summary = label_images(images, predict, out, **options)
            assert (summary.kept, summary.labelled, summary.failed) == (kept, 27 - kept, 3)
        return {path.name: path.read_bytes() for path in out.iterdir()}

    one = label(1)
    assert "failures.csv" in one and len(one) == 27 + 2
    assert label(2) == label(5) == one
    # One after the other in the order of names; else those of a size stay together.
    changes = {n: sum(a != b for a, b in pairwise(s)) for n, s in seen.items()}
    assert changes[2] < changes[1] / 2


def test_an_error_that_is_not_about_an_image_keeps_what_is_finished(tmp_path: Path) -> None:
    of_sizes(tmp_path / "images", 30)

    def predict(image: np.ndarray, labels: list[int] | None) -> np.ndarray:
        if image[0, 0, 0] == 20:
            raise ServerError("gone")
        return np.zeros(image.shape[:2], np.uint8)

    images = find_images([tmp_path / "images"])
    for in_flight in (1, 3):
        out = tmp_path / str(in_flight)
        with pytest.raises(ServerError, match="gone"):
            label_images(images, predict, out, provenance={}, classes=[], in_flight=in_flight)
        finished = {path.name for path in out.glob("*.png")}
        assert 0 < len(finished) < 29 and "20.png" not in finished
        assert not list(out.glob(".*"))
