"""Images with a label file: matching of names, lists, masks, and what is refused."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from small_image_sets import column_mask, write_folder, write_image, write_mask, write_text

from wsss.errors import DataError
from wsss.training.data.readers import read_image_set

IMAGES = ("a.jpg", "sub/b.png", "c.jpg")
LABELS = "file,labels\na.jpg,dog;cat\nsub/b,\nimages/c.jpg,ant"


def test_labels_by_any_usual_form_of_the_name(tmp_path: Path) -> None:
    images = read_image_set(write_folder(tmp_path, LABELS, IMAGES))
    assert images.classes == ("ant", "cat", "dog")
    found = {sample.name: sample.labels for sample in images.samples}
    assert found == {"a": (1, 2), "sub/b": (), "c": (0,)}
    assert images.samples[0].image_path == tmp_path / "images" / "a.jpg"


def test_images_beside_the_label_file(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / ".hidden.jpg")
    write_mask(tmp_path / "masks" / "a.png", 1)
    write_text(tmp_path / "anything.json", '{"a.jpg": ["cat"]}')
    (sample,) = read_image_set(tmp_path).samples
    assert sample.name == "a"
    np.testing.assert_array_equal(sample.load_mask(), column_mask(1))


def test_accents_written_apart(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "caf\u00e9")
    write_folder(tmp_path, "file,labels\ncaf\u00e9,cat", [f"{name}.jpg"])
    assert read_image_set(tmp_path).samples[0].labels == (0,)


def test_without_lists_all_are_for_training(tmp_path: Path) -> None:
    images = read_image_set(write_folder(tmp_path, LABELS, IMAGES))
    assert images.splits == ("train",)
    assert len(images.select("train").samples) == 3


def test_split_column(tmp_path: Path) -> None:
    text = "file,labels,split\na.jpg,cat,train\nsub/b,,Validation\nc,ant,"
    images = read_image_set(write_folder(tmp_path, text, IMAGES))
    assert {s.name: s.splits for s in images.samples} == {
        "a": ("train",),
        "c": (),
        "sub/b": ("val",),
    }
    assert [found.kind for found in images.findings] == ["image in no list"]


def test_lists_as_text_files(tmp_path: Path) -> None:
    write_folder(tmp_path, LABELS, IMAGES)
    write_text(tmp_path / "train.txt", "a", "sub/b.png")
    write_text(tmp_path / "val.txt", "images/c.jpg")
    write_text(tmp_path / "notes.txt", "not a list")
    images = read_image_set(tmp_path)
    assert [s.name for s in images.select("train").samples] == ["a", "sub/b"]
    assert [s.name for s in images.select("val").samples] == ["c"]
    write_text(tmp_path / "val.txt", "c", "absent")
    with pytest.raises(DataError, match=r"val\.txt' mentions image 'absent'"):
        read_image_set(tmp_path)


def test_classes_txt_fixes_the_order(tmp_path: Path) -> None:
    write_folder(tmp_path, LABELS, IMAGES)
    write_text(tmp_path / "classes.txt", "dog", "cat", "ant", "bee")
    images = read_image_set(tmp_path)
    assert images.classes == ("dog", "cat", "ant", "bee")
    assert images.samples[0].labels == (0, 1)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["cat", "cat"], "'cat' twice"),
        (["cat", "background"], "in the middle"),
        ([], "0 classes, expected 1 to 254"),
        ([f"class{n}" for n in range(255)], "255 classes, expected 1 to 254"),
    ],
)
def test_bad_class_lists(tmp_path: Path, names: list[str], reason: str) -> None:
    write_folder(tmp_path, LABELS, IMAGES)
    write_text(tmp_path / "classes.txt", *names)
    with pytest.raises(DataError, match=reason):
        read_image_set(tmp_path)


def faults(root: Path) -> list[str]:
    """Kinds of the findings; the first of them must be what the strict reader raises."""
    found = read_image_set(root, strict=False).findings
    with pytest.raises(DataError) as caught:
        read_image_set(root)
    assert str(caught.value) == found[0].text
    assert "\n" not in found[0].text
    return [finding.kind for finding in found]


def test_image_without_labels(tmp_path: Path) -> None:
    write_folder(tmp_path, LABELS, (*IMAGES, "d.jpg"))
    assert faults(tmp_path) == ["unlabelled image"]
    images = read_image_set(tmp_path, strict=False)
    assert {s.name: s.labels for s in images.samples}["d"] is None


def test_labels_without_image(tmp_path: Path) -> None:
    write_folder(tmp_path, LABELS + "\nd.jpg,cat", IMAGES)
    assert faults(tmp_path) == ["label without image"]


def test_unknown_label(tmp_path: Path) -> None:
    write_folder(tmp_path, LABELS, IMAGES)
    write_text(tmp_path / "classes.txt", "dog", "ant")
    assert faults(tmp_path) == ["unknown label"]
    with pytest.raises(DataError, match="label 'cat' of image 'a'"):
        read_image_set(tmp_path)


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/etc/passwd", "sub/../a.jpg", "..\\a.jpg", "C:\\a.jpg"]
)
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "a.jpg")
    root = write_folder(tmp_path / "set", f"file,labels\na.jpg,cat\n{name},cat", ["a.jpg"])
    assert faults(root) == ["refused name"]


def test_two_images_of_one_name(tmp_path: Path) -> None:
    write_folder(tmp_path, "file,labels\na,cat", ["a.jpg", "a.png"])
    assert faults(tmp_path) == ["duplicate"]


def test_ambiguous_rows(tmp_path: Path) -> None:
    write_folder(tmp_path, "file,labels\na.png,cat\na.webp,dog", ["a.jpg"])
    with pytest.raises(DataError, match=r"different rows for 'a\.jpg'"):
        read_image_set(tmp_path)


def test_masks_of_no_image_are_told(tmp_path: Path) -> None:
    write_folder(tmp_path, LABELS, IMAGES)
    write_mask(tmp_path / "masks" / "sub" / "b.png", 3)
    write_mask(tmp_path / "masks" / "A.png", 1)
    images = read_image_set(tmp_path)
    assert [(found.kind, found.image) for found in images.findings] == [("bad mask", "A")]
    assert [sample.mask is not None for sample in images.samples] == [False, False, True]


def test_several_label_files(tmp_path: Path) -> None:
    write_folder(tmp_path, LABELS, IMAGES)
    write_text(tmp_path / "other.csv", "x")
    assert len(read_image_set(tmp_path).samples) == 3
    (tmp_path / "labels.csv").rename(tmp_path / "more.csv")
    with pytest.raises(DataError, match=r"label files more\.csv, other\.csv"):
        read_image_set(tmp_path)


def test_only_background(tmp_path: Path) -> None:
    write_folder(tmp_path, "file,labels\na.jpg,", ["a.jpg"])
    with pytest.raises(DataError, match="no image has a label"):
        read_image_set(tmp_path)


def test_label_file_without_images(tmp_path: Path) -> None:
    write_folder(tmp_path, LABELS, ())
    with pytest.raises(DataError, match="has no images"):
        read_image_set(tmp_path)


def test_a_link_to_a_folder_above_has_an_end(tmp_path: Path) -> None:
    write_folder(tmp_path, LABELS, IMAGES)
    (tmp_path / "images" / "loop").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "round").symlink_to(tmp_path)
    assert len(read_image_set(tmp_path).samples) == 3
