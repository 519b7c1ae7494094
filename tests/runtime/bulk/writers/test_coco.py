"""coco.json in pycocotools: its masks are the PNGs'."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from labelled_images import CLASSES, LABELS, labelled, make_job, objects, written
from PIL import Image
from pycocotools.coco import COCO

from wsss.runtime.bulk.formats.image_files import PngWriter
from wsss.runtime.bulk.formats.runs import CocoWriter

# pycocotools 2.0.11 and NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

IMAGES = [
    labelled(label, name=f"{place}.jpg", output=str(place), index=7 * place)
    for place, label in enumerate(LABELS.values())
]


@pytest.fixture
def coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> COCO:
    path = tmp_path / "coco.json"
    path.write_bytes(written(CocoWriter(make_job()), IMAGES)["coco.json"])
    return COCO(path)


def test_masks_are_those_of_the_pngs(coco: COCO) -> None:
    pngs = written(PngWriter(make_job()), IMAGES)
    for image, image_id in zip(IMAGES, coco.getImgIds(), strict=True):
        (described,) = coco.loadImgs(image_id)
        assert described["file_name"] == image.ref.name
        assert (described["height"], described["width"]) == image.label.shape
        found = np.zeros(image.label.shape, np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(image_id)):
            mask = coco.annToMask(annotation)
            assert not found[mask == 1].any()
            found[mask == 1] = annotation["category_id"]
        png = np.array(Image.open(io.BytesIO(pngs[f"masks/{image.ref.output}.png"])))
        np.testing.assert_array_equal(found, objects(png))


def test_areas_and_boxes(coco: COCO) -> None:
    for annotation in coco.loadAnns(coco.getAnnIds()):
        rows, columns = np.nonzero(coco.annToMask(annotation))
        assert annotation["area"] == rows.size
        left, top, width, height = annotation["bbox"]
        assert (left, top) == (columns.min(), rows.min())
        assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)


def test_ids_count_from_one_and_each_class_stands_once(coco: COCO) -> None:
    assert coco.getImgIds() == list(range(1, len(IMAGES) + 1))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [annotation["id"] for annotation in annotations] == list(range(1, len(annotations) + 1))
    pairs = [(annotation["image_id"], annotation["category_id"]) for annotation in annotations]
    assert pairs == sorted(set(pairs))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)


def test_training_code_keeps_the_annotations(coco: COCO) -> None:
    """Readers drop crowds: torchvision's and detectron2's for training, COCOeval in its figures."""
    assert len(coco.getAnnIds(iscrowd=False)) == len(coco.getAnnIds()) > 0


def test_the_file_is_streamed() -> None:
    """Two passes over the entries, and no more of them held at once than one."""
    writer = CocoWriter(make_job())
    entry = writer.entry(IMAGES[-1])
    taken = 0

    class Entries:
        def __iter__(self):
            nonlocal taken
            for _ in range(1000):
                taken += 1
                yield entry

    ((_, pieces),) = writer.collect(Entries())
    sizes = []
    for piece in pieces:
        sizes.append((taken, len(piece)))
    assert taken == 2000
    assert max(size for _, size in sizes) < 5000
    halfway = sizes[len(sizes) // 2][0]
    assert 1000 <= halfway < 1700  # written as they come, not at the end


def test_a_line_each() -> None:
    """For those who look into the file with `head`."""
    content = written(CocoWriter(make_job()), IMAGES)["coco.json"]
    lines = content.decode("ascii").splitlines()
    document = json.loads(content)
    assert len(lines) == 1 + len(document["images"]) + len(document["annotations"])
