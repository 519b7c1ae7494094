"""Selection, digest and masks of an image set."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_image_sets import column_mask, write_folder, write_image, write_mask, write_text

from wsss.errors import ArtifactError, DataError
from wsss.runtime.io.image_io import write_label_map
from wsss.training.data.image_set import ImageSet, MaskFile, Sample, spread
from wsss.training.data.readers import read_image_set

LABELS = "file,labels,split\na,cat,train\nb,dog,val\nc,,train"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = write_folder(tmp_path / "set", LABELS, ["a.jpg", "b.jpg", "c.jpg"])
    write_mask(root / "masks" / "a.png", 1)
    return root


def test_select(root: Path) -> None:
    images = read_image_set(root)
    assert [sample.name for sample in images.select("train").samples] == ["a", "c"]
    assert images.select(None) == images
    with pytest.raises(DataError, match=r"list 'tset', its lists are: 'train', 'val'$"):
        images.select("tset")
    with pytest.raises(DataError, match="has no images"):
        replace(images, samples=()).select(None)
    with pytest.raises(DataError, match="lists are: none"):
        replace(images, samples=()).select("train")


def test_digest_does_not_depend_on_the_place(root: Path, tmp_path: Path) -> None:
    digest = read_image_set(root).digest(masks=True)
    shutil.copytree(root, tmp_path / "elsewhere")
    assert read_image_set(tmp_path / "elsewhere").digest(masks=True) == digest
    assert read_image_set(root).select("train").digest(masks=True) != digest


@pytest.mark.parametrize("what", ["labels", "split", "classes", "image", "mask", "pixels", "name"])
def test_digest_tells_changes(root: Path, what: str) -> None:
    digest, without_masks = (read_image_set(root).digest(masks=masks) for masks in (True, False))
    if what == "labels":
        write_text(root / "labels.csv", *LABELS.replace("a,cat", "a,cat;dog").split("\n"))
    elif what == "split":
        write_text(root / "labels.csv", *LABELS.replace("dog,val", "dog,train").split("\n"))
    elif what == "classes":
        write_text(root / "classes.txt", "cat", "dog", "bee")
    elif what == "image":
        path = root / "images" / "a.jpg"
        path.write_bytes(path.read_bytes() + b"\0")
    elif what == "mask":
        (root / "masks" / "a.png").unlink()
    elif what == "pixels":
        path = root / "masks" / "a.png"
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size
    else:
        (root / "images" / "c.jpg").rename(root / "images" / "d.jpg")
        write_text(root / "labels.csv", *LABELS.replace("c,,", "d,,").split("\n"))
    changed = read_image_set(root)
    assert changed.digest(masks=True) != digest
    assert (changed.digest(masks=False) == without_masks) == (what in ("mask", "pixels"))


def test_masks(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.jpg")
    path = write_mask(tmp_path / "a.png", 2, 255)
    sample = Sample("a", image, (0,), mask=MaskFile(path, 2))
    np.testing.assert_array_equal(sample.load_mask(), column_mask(2, 255))
    with pytest.raises(DataError, match=r"index 2, expected 0\.\.1 or 255"):
        replace(sample, mask=MaskFile(path, 1)).load_mask()
    with pytest.raises(DataError, match="image 'a' has no mask"):
        replace(sample, mask=None).load_mask()
    write_label_map(path, np.zeros((6, 4), np.uint8))
    with pytest.raises(DataError, match=r"is 6 x 4, its image .* is 4 x 6"):
        sample.load_mask()


@pytest.mark.parametrize("strict", [True, False])
def test_no_set_at_all(tmp_path: Path, strict: bool) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_image_set(tmp_path / "absent", strict=strict)
    with pytest.raises(DataError, match="has no images: expected a VOC devkit"):
        read_image_set(tmp_path, strict=strict)
    with pytest.raises(DataError, match="is a file"):
        read_image_set(write_image(tmp_path / "a.jpg"), strict=strict)
    with pytest.raises(DataError, match="has 1 images but no label file"):
        read_image_set(tmp_path, strict=strict)


def test_root_is_absolute(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run remembers the folder's name, which `.` has not."""
    monkeypatch.chdir(root)
    assert read_image_set(Path(".")).root == root
    assert isinstance(read_image_set(Path("../set")), ImageSet)
    assert read_image_set(Path("images/..")).root == root


def test_a_model_must_know_the_classes_in_their_order(root: Path) -> None:
    images = read_image_set(root)
    images.require_classes(["cat", "dog"], "run 'a'")
    for classes in (("dog", "cat"), ("cat",)):
        with pytest.raises(ArtifactError, match="run 'a' knows the classes"):
            images.require_classes(classes, "run 'a'")


def test_a_spread_reaches_over_the_whole_list() -> None:
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread((1, 2), 5) == [1, 2]
    assert spread([], 5) == []
