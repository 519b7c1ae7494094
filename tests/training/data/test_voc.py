"""VOC devkits: where they lie, their lists, and the three places labels come from."""

import os
from collections import Counter
from csv import DictReader
from pathlib import Path

import numpy as np
import pytest
from small_image_sets import annotation, write_image, write_mask, write_text, write_voc

from wsss.errors import DataError
from wsss.training.data.class_list import VOC_CLASSES
from wsss.training.data.readers import read_image_set
from wsss.training.data.voc_labels import MAX_ANNOTATION_BYTES, read_annotation

SHARED = Path(os.environ.get("WSSS_SHARED", Path(__file__).parents[4] / "shared"))
VOC_MINI = SHARED / "data" / "voc_mini"

LISTS = {"train": ["a", "b"], "val": ["c"], "trainval": ["a", "b", "c"]}
OBJECTS = {"a": ["dog", "cat", "dog"], "b": [], "c": ["person"]}


@pytest.mark.parametrize("place", [".", "VOC2012", "VOCdevkit/VOC2012"])
def test_devkit_is_found(tmp_path: Path, place: str) -> None:
    write_voc(tmp_path / place, LISTS, OBJECTS)
    images = read_image_set(tmp_path)
    assert images.root == tmp_path
    assert images.classes == VOC_CLASSES
    assert [sample.name for sample in images.samples] == ["a", "b", "c"]
    assert [sample.labels for sample in images.samples] == [(7, 11), (), (14,)]
    assert images.samples[0].splits == ("train", "trainval")
    assert [sample.name for sample in images.select("val").samples] == ["c"]


def test_newest_of_several_devkits(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2007", {"train": ["old"]}, {"old": ["cat"]})
    write_voc(tmp_path / "VOC2012", {"train": ["new"]}, {"new": ["cat"]})
    images = read_image_set(tmp_path)
    assert [sample.name for sample in images.samples] == ["new"] and "VOC2012" in images.layout


def test_main_lists_without_those_of_single_classes(tmp_path: Path) -> None:
    write_voc(tmp_path, LISTS, OBJECTS)
    (tmp_path / "ImageSets" / "Segmentation").rename(tmp_path / "ImageSets" / "Main")
    write_text(tmp_path / "ImageSets" / "Main" / "cat_train.txt", "a  1", "b -1")
    assert read_image_set(tmp_path).splits == ("train", "trainval", "val")


def test_other_names_are_sorted_and_classes_txt_orders_them(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": ["a"]}, {"a": ["zebra", "ant"]})
    assert read_image_set(tmp_path).classes == ("ant", "zebra")
    write_text(tmp_path / "classes.txt", "background", "zebra", "bee", "ant")
    images = read_image_set(tmp_path)
    assert images.classes == ("zebra", "bee", "ant")
    assert images.samples[0].labels == (0, 2)
    assert read_image_set(tmp_path, classes=["ant", "zebra"]).samples[0].labels == (0, 1)


@pytest.mark.parametrize("place", [".", ".."])
def test_labels_from_a_table(tmp_path: Path, place: str) -> None:
    devkit = write_voc(tmp_path / "VOC2012", LISTS)
    rows = ("a,cat dog,zoo", "b,,zoo", "c,person,web")
    write_text(devkit / place / "labels.csv", "id,classes,source", *rows)
    images = read_image_set(tmp_path)
    assert [sample.labels for sample in images.samples] == [(7, 11), (), (14,)]
    assert [sample.source for sample in images.samples] == ["zoo", "zoo", "web"]


def test_table_must_mention_every_image_and_no_other(tmp_path: Path) -> None:
    write_voc(tmp_path, LISTS)
    write_text(tmp_path / "labels.csv", "id,classes", "a,cat", "b,")
    with pytest.raises(DataError, match=r"does not mention image 'c'.*empty entry"):
        read_image_set(tmp_path)
    write_image(tmp_path / "JPEGImages" / "unused.jpg")
    write_text(tmp_path / "labels.csv", "id,classes", "a,cat", "b,", "c,dog", "unused,dog")
    assert len(read_image_set(tmp_path).samples) == 3
    write_text(tmp_path / "labels.csv", "id,classes", "a,cat", "b,", "c,dog", "d,dog")
    with pytest.raises(DataError, match="mentions image 'd'"):
        read_image_set(tmp_path)


def test_labels_from_masks(tmp_path: Path) -> None:
    write_voc(tmp_path, LISTS)
    write_mask(tmp_path / "SegmentationClass" / "a.png", 255, 12, 8)
    write_mask(tmp_path / "SegmentationClass" / "b.png", 255)
    images = read_image_set(tmp_path)
    assert [sample.labels for sample in images.samples] == [(7, 11), (), None]
    assert "masks" in images.layout
    np.testing.assert_array_equal(images.samples[0].load_mask()[0], [255, 12, 8, 0, 0, 0])
    write_mask(tmp_path / "SegmentationClass" / "c.png", 21)
    with pytest.raises(DataError, match=r"index 21, expected 0\.\.20 or 255"):
        read_image_set(tmp_path)


def test_missing_image_and_missing_annotation(tmp_path: Path) -> None:
    write_voc(tmp_path, LISTS, OBJECTS)
    (tmp_path / "Annotations" / "b.xml").unlink()
    with pytest.raises(DataError, match="image 'b' has no annotation"):
        read_image_set(tmp_path)
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(DataError, match="list 'train' names image 'b'"):
        read_image_set(tmp_path)
    kinds = Counter(found.kind for found in read_image_set(tmp_path, strict=False).findings)
    assert kinds == {"missing image": 1}


def test_images_in_no_list_are_told(tmp_path: Path) -> None:
    write_voc(tmp_path, LISTS, OBJECTS)
    write_image(tmp_path / "JPEGImages" / "z.jpg")
    images = read_image_set(tmp_path)
    assert [found.kind for found in images.findings] == ["image in no list"]


@pytest.mark.parametrize("line", ["../../etc/passwd", "/JPEGImages/a.jpg", "a -1"])
def test_lists_hold_plain_names(tmp_path: Path, line: str) -> None:
    write_voc(tmp_path, LISTS, OBJECTS)
    write_text(tmp_path / "ImageSets" / "Segmentation" / "bad.txt", line)
    with pytest.raises(DataError, match="expected one image name a line"):
        read_image_set(tmp_path)


def test_no_lists(tmp_path: Path) -> None:
    write_voc(tmp_path, {}, {})
    (tmp_path / "JPEGImages").mkdir(parents=True)
    (tmp_path / "ImageSets").mkdir()
    with pytest.raises(DataError, match="has no lists"):
        read_image_set(tmp_path)


BOMB = """<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BOMB.encode(), "document type or entities"),
        (b'<!DOCTYPE annotation SYSTEM "http://example.org/a.dtd"><annotation/>', "document type"),
        (BOMB.replace("DOCTYPE", "doctype").replace("ENTITY", "entity").encode(), "not UTF-8 XML"),
        (BOMB.encode("utf-16"), "not UTF-8 XML"),
        (b"<annotation>&outside;</annotation>", "not UTF-8 XML"),
        (b"<annotation><object>", "not UTF-8 XML"),
        (b"", "not UTF-8 XML"),
        (b"<html/>", "not one of VOC"),
        (b"<annotation><object/></annotation>", "not one of VOC"),
        (b" " * (MAX_ANNOTATION_BYTES + 1), "bytes, expected at most"),
    ],
)
def test_hostile_annotations(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_annotation(path)
    assert str(path) in str(caught.value)


def test_parts_of_objects_are_no_labels(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.xml", annotation("dog", "cat"))
    assert read_annotation(path) == ("dog", "cat")


@pytest.mark.skipif(not VOC_MINI.is_dir(), reason=f"needs {VOC_MINI}, or WSSS_SHARED")
def test_voc_mini() -> None:
    images = read_image_set(VOC_MINI)
    assert len(images.select("train").samples) == 399
    assert len(images.select("val").samples) == 133
    assert {sample.source for sample in images.samples} == {"coco2017", "msrc_v2"}
    with (VOC_MINI / "labels.csv").open(encoding="utf-8") as file:
        rows = list(DictReader(file))
    for split in ("train", "val"):
        expected = Counter(
            name for row in rows if row["split"] == split for name in row["classes"].split()
        )
        found = Counter(
            images.classes[index]
            for sample in images.select(split).samples
            for index in sample.labels or ()
        )
        assert found == expected
    for sample in images.samples[::20]:
        inside = np.setdiff1d(sample.load_mask(), (0, 255)) - 1
        assert tuple(inside.tolist()) == sample.labels
