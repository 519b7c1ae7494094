"""The outputs that tell single objects apart: VOC's pair, COCO with scores, lines in overlays."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from labelled_images import LABELS, labelled, make_job, written
from PIL import Image
from pycocotools.coco import COCO

from wsss.runtime.bulk.formats.image_files import InstancesWriter, OverlayWriter
from wsss.runtime.bulk.formats.runs import CocoInstancesWriter
from wsss.runtime.bulk.inputs.images import LabelledImage
from wsss.runtime.instances.files import read_ids
from wsss.runtime.instances.instance_map import InstanceMap
from wsss.runtime.io.image_io import decode_image
from wsss.runtime.report.pictures import draw_labels

# pycocotools 2.0.11 and NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

IDS = np.array([[1, 1, 2, 2], [1, 0, 2, 3], [4, 0, 0, 3]], np.uint16)
FOUND = InstanceMap(IDS, np.array([1, 1, 0, 1, 0]), np.array([0.9, 0.1, 1 / 3, 0, 0.5], np.float32))
"""Five instances of two classes, the fourth a fragment, the last without a pixel."""


def image_of(found: InstanceMap, label: np.ndarray | None = None) -> LabelledImage:
    image = labelled(found.label_map() if label is None else label)
    return replace(image, instances=found)


def coco(tmp_path: Path, images: list[LabelledImage]) -> COCO:
    path = tmp_path / "instances.json"
    path.write_bytes(written(CocoInstancesWriter(make_job()), images)["instances.json"])
    return COCO(path)


def test_pair_of_files(tmp_path: Path) -> None:
    files = written(InstancesWriter(make_job()), [image_of(FOUND)])
    assert list(files) == ["SegmentationObject/a/b.png", "SegmentationClass/a/b.png"]
    objects, classes = (np.array(Image.open(io.BytesIO(data))) for data in files.values())
    np.testing.assert_array_equal(objects, IDS)
    assert classes.tolist() == [[2, 2, 2, 2], [2, 0, 2, 1], [2, 0, 0, 1]]
    path = tmp_path / "ids.png"
    path.write_bytes(files["SegmentationObject/a/b.png"])
    np.testing.assert_array_equal(read_ids(path).scores, FOUND.scores)


def test_pair_says_nothing_where_the_label_does(tmp_path: Path) -> None:
    label = FOUND.label_map()
    label[0] = 255
    found = FOUND.without(label == 255)
    files = written(InstancesWriter(make_job()), [image_of(found, label)])
    objects, classes = (np.array(Image.open(io.BytesIO(data))) for data in files.values())
    assert (objects[0] == 255).all() and (classes[0] == 255).all()
    np.testing.assert_array_equal(objects[1:], IDS[1:])
    np.testing.assert_array_equal(classes[1:], FOUND.label_map()[1:])


@pytest.mark.parametrize("count", [254, 255, 256, 700])
def test_more_than_254_instances_have_16_bits(count: int, tmp_path: Path) -> None:
    ids = np.zeros((30, 40), np.uint16)
    ids.flat[: count + 1] = np.arange(count + 1)
    found = InstanceMap(ids, np.arange(count) % 2, np.linspace(0, 1, count, dtype=np.float32))
    label = found.label_map()
    label[-1] = 255
    files = written(InstancesWriter(make_job()), [image_of(found, label)])
    data = files["SegmentationObject/a/b.png"]
    assert Image.open(io.BytesIO(data)).mode == ("P" if count <= 254 else "I;16")
    path = tmp_path / "ids.png"
    path.write_bytes(data)
    stored = read_ids(path)
    np.testing.assert_array_equal(stored.ids, ids)
    np.testing.assert_array_equal(stored.void, label == 255)
    np.testing.assert_array_equal(stored.scores, found.scores)
    # Other software: values are ids as they are.
    shown = np.array(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(shown[:-1], ids[:-1])


def test_coco_has_an_annotation_an_instance(tmp_path: Path) -> None:
    opened = coco(tmp_path, [image_of(FOUND), image_of(FOUND)])
    for image_id in (1, 2):
        annotations = opened.loadAnns(opened.getAnnIds(image_id))
        assert [each["category_id"] for each in annotations] == [2, 2, 1]
        for annotation, instance in zip(annotations, (1, 2, 3), strict=True):
            mask = opened.annToMask(annotation)
            np.testing.assert_array_equal(mask, instance == IDS)
            rows, columns = np.nonzero(mask)
            assert annotation["area"] == rows.size and annotation["iscrowd"] == 0
            left, top, width, height = annotation["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
            assert np.float32(annotation["score"]) == FOUND.scores[instance - 1]
    assert len(opened.getAnnIds()) == len(set(opened.getAnnIds())) == 6


def test_scores_are_short_and_exact(tmp_path: Path) -> None:
    text = written(CocoInstancesWriter(make_job()), [image_of(FOUND)])["instances.json"].decode()
    assert '"score":0.9}' in text and '"score":0.33333334}' in text


def test_an_id_of_255_is_an_instance(tmp_path: Path) -> None:
    ids = np.zeros((20, 20), np.uint16)
    ids.flat[:300] = np.arange(1, 301)
    found = InstanceMap(ids, np.zeros(300, np.int64), np.ones(300, np.float32))
    assert len(coco(tmp_path, [image_of(found)]).getAnnIds()) == 300


@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
def test_both_formats_hold_the_same_objects(label: np.ndarray, tmp_path: Path) -> None:
    image = labelled(label)
    pair = written(InstancesWriter(make_job()), [image])
    ids = np.array(Image.open(io.BytesIO(pair["SegmentationObject/a/b.png"])))
    opened = coco(tmp_path, [image])
    values = np.unique(ids[(ids != 0) & (ids != 255)]).tolist()
    annotations = opened.loadAnns(opened.getAnnIds())
    for value, annotation in zip(values, annotations, strict=True):
        np.testing.assert_array_equal(opened.annToMask(annotation), ids == value)


def test_overlay_has_a_line_around_each() -> None:
    label = np.zeros((60, 80), np.uint8)
    label[10:50, 10:70] = 1
    ids = label.astype(np.uint16)
    ids[10:50, 40:70] = 2  # they touch, and are of one class
    found = InstanceMap(ids, np.zeros(2, np.int64), np.ones(2, np.float32))
    image = replace(labelled(label), pixels=np.full((60, 80, 3), 90, np.uint8))
    job = make_job()
    without, with_lines = (
        decode_image(written(OverlayWriter(job), [each])["overlays/a/b.jpg"], "a").astype(int)
        for each in (replace(image, instances=None), replace(image, instances=found))
    )
    assert with_lines[20:40, 39].min() > without[20:40, 39].max() + 60
    assert np.abs(with_lines[:, :30] - without[:, :30]).max() < 4
    drawn = draw_labels(image.pixels, label, palette=job.palette, ids=ids)
    assert (drawn[10:50, 39] == 255).all() and (drawn[20:40, 42] != 255).any()


def test_overlay_shows_the_instances_classes() -> None:
    """The label of a pixel may be another class than that of its instance."""
    label = np.ones((40, 40), np.uint8)
    found = InstanceMap(label.astype(np.uint16), np.array([1]), np.ones(1, np.float32))
    image = replace(labelled(label), pixels=np.full((40, 40, 3), 90, np.uint8))
    image = replace(image, instances=found)
    drawn = decode_image(written(OverlayWriter(make_job()), [image])["overlays/a/b.jpg"], "a")
    tints = [draw_labels(image.pixels, value * label)[20, 20].astype(int) for value in (1, 2)]
    assert np.abs(drawn[20, 20] - tints[1]).max() < 6 < np.abs(drawn[20, 20] - tints[0]).max()
