"""Which files `wsss label` takes, and which image-level labels it gives them."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from wsss.errors import DataError
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
