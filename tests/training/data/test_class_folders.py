"""A folder per class, and how lists are told from classes."""

from pathlib import Path

import numpy as np
import pytest
from small_image_sets import column_mask, write_image, write_mask, write_text

from wsss.errors import DataError
from wsss.training.data.readers import read_image_set


def write_images(root: Path, *names: str) -> Path:
    for grey, name in enumerate(names):
        write_image(root / name, grey)
    return root


def test_folders_are_classes(tmp_path: Path) -> None:
    write_images(tmp_path, "dog/1.jpg", "cat/deep/1.jpg", "background/1.png")
    images = read_image_set(tmp_path)
    assert images.classes == ("cat", "dog")
    found = {sample.name: sample.labels for sample in images.samples}
    assert found == {"background/1": (), "cat/deep/1": (0,), "dog/1": (1,)}
    assert images.splits == ("train",)


def test_lists_above_classes(tmp_path: Path) -> None:
    write_images(tmp_path, "train/dog/1.jpg", "train/cat/2.jpg", "validation/dog/3.jpg")
    images = read_image_set(tmp_path)
    assert images.classes == ("cat", "dog")
    assert [sample.name for sample in images.select("val").samples] == ["validation/dog/3"]
    assert len(images.select("train").samples) == 2


@pytest.mark.parametrize("other", ["bus", "images"])
def test_names_that_may_be_classes(tmp_path: Path, other: str) -> None:
    """A train is a vehicle, and there may be a class called images."""
    write_images(tmp_path, "train/1.jpg", f"{other}/2.jpg")
    images = read_image_set(tmp_path)
    assert images.classes == tuple(sorted(("train", other)))
    assert len(images.samples) == 2


def test_below_images_with_masks(tmp_path: Path) -> None:
    write_images(tmp_path, "images/cat/1.jpg")
    write_mask(tmp_path / "masks" / "cat" / "1.png", 1, 255)
    (sample,) = read_image_set(tmp_path).samples
    assert sample.name == "cat/1"
    np.testing.assert_array_equal(sample.load_mask(), column_mask(1, 255))


def test_the_same_image_in_two_classes(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "1.jpg")
    write_image(tmp_path / "dog" / "1.jpg")
    assert len(read_image_set(tmp_path).samples) == 2


def test_an_image_beside_the_folders(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.jpg", "lost.jpg")
    with pytest.raises(DataError, match=r"'lost\.jpg'.*beside the class folders"):
        read_image_set(tmp_path)
    images = read_image_set(tmp_path, strict=False)
    assert len(images.samples) == 1
    assert [found.kind for found in images.findings] == ["unplaced image"]


def test_a_folder_outside_the_class_list(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.jpg", "dog/1.jpg")
    write_text(tmp_path / "classes.txt", "cat")
    with pytest.raises(DataError, match="label 'dog' of image 'dog/1'"):
        read_image_set(tmp_path)


def test_lists_without_classes(tmp_path: Path) -> None:
    write_images(tmp_path, "train/1.jpg", "val/1.jpg")
    with pytest.raises(DataError, match=r"train, val .* no class folders"):
        read_image_set(tmp_path)
