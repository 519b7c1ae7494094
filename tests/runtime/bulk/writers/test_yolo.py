"""YOLO's polygons and its list of classes."""

import numpy as np
import pytest
from label_formats import read_yolo
from labelled_images import NAMES, blobs, labelled, make_job, objects, written

from wsss.runtime.bulk.formats.contract import plain
from wsss.runtime.bulk.formats.polygons import YoloWriter


def _read(image, size: tuple[int, int]) -> np.ndarray:
    files = written(YoloWriter(make_job()), [image])
    return read_yolo(files, {"a/b": size})["a/b"]


def test_a_square_in_the_middle() -> None:
    label = np.zeros((10, 20), np.uint8)
    label[2:8, 5:15] = 2
    files = written(YoloWriter(make_job()), [labelled(label)])
    assert files["yolo/labels/a/b.txt"] == (
        b"1 0.275000 0.250000 0.275000 0.750000 0.725000 0.750000 0.725000 0.250000\n"
    )


def test_holes_and_islands_stay() -> None:
    label = blobs(200, 310)
    np.testing.assert_array_equal(_read(labelled(label), label.shape), objects(label))


def test_digits_suffice_for_very_wide_images() -> None:
    label = np.zeros((3, 30_000), np.uint8)
    label[1, 1::3] = 1
    np.testing.assert_array_equal(_read(labelled(label), label.shape), label)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_polygons_stay_in_place_in_an_enlarged_image(factor: int) -> None:
    """Training resizes images; an edge moves by at most half a pixel of the original, inwards."""
    label = np.zeros((40, 50), np.uint8)
    label[5:17, 20:45] = 1
    found = _read(labelled(label), (40 * factor, 50 * factor))
    rows, columns = np.nonzero(found)
    for first, last, start, stop in (
        (rows.min(), rows.max(), 5, 17),
        (columns.min(), columns.max(), 20, 45),
    ):
        assert 0 <= first - factor * start <= factor / 2
        assert 0 <= factor * stop - 1 - last <= factor / 2


def test_an_image_without_objects_has_an_empty_file() -> None:
    files = written(YoloWriter(make_job()), [labelled(np.array([[0, 255]], np.uint8))])
    assert files["yolo/labels/a/b.txt"] == b""


def test_yaml_reads_the_classes() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML, in no extra of ours; passed with 6.0.3")
    for names in ([], ["cat"], NAMES, ["yes", "1.5", "null", "- a", ""]):
        files = written(YoloWriter(make_job(names)), [])
        found = yaml.safe_load(files["yolo/data.yaml"])
        assert found["names"] == {place: plain(name) for place, name in enumerate(names)}
        assert found["nc"] == len(names)
        assert found["train"] == found["val"] == "images"
