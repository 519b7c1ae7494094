"""CVAT's XML, by itself and in datumaro."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from labelled_images import CLASSES, LABELS, blobs, labelled, make_job, objects, written
from PIL import Image

from wsss.runtime.bulk.formats.runs import CvatWriter


def test_a_mask_is_the_rectangle_around_its_class() -> None:
    label = np.zeros((5, 8), np.uint8)
    label[1, 3:6] = 2
    label[2, 4] = 2
    label[3, 5] = 255
    files = written(CvatWriter(make_job()), [labelled(label, name="a.jpg")])
    root = ElementTree.fromstring(files["cvat.xml"])
    (image,) = root.findall("image")
    assert image.attrib == {"id": "0", "name": "a.jpg", "width": "8", "height": "5"}
    (mask,) = image
    box = {key: mask.get(key) for key in ("label", "left", "top", "width", "height")}
    assert box == {"label": "dog", "left": "3", "top": "1", "width": "3", "height": "2"}
    assert mask.get("rle") == "0, 3, 1, 1, 1"


def test_labels_have_the_palettes_colours() -> None:
    root = ElementTree.fromstring(written(CvatWriter(make_job()), [])["cvat.xml"])
    labels = root.findall("meta/task/labels/label")
    assert [(label.findtext("name"), label.findtext("color")) for label in labels] == [
        ("cat", "#800000"),
        ("dog", "#008000"),
    ]


def test_images_are_numbered_and_streamed() -> None:
    writer = CvatWriter(make_job())
    entry = writer.entry(labelled(blobs()))
    ((_, pieces),) = writer.collect(entry for _ in range(500))
    sizes = [len(piece) for piece in pieces]
    assert len(sizes) == 502 and max(sizes) < 2 * min(sizes[1:-1])


@pytest.mark.filterwarnings("ignore")  # datumaro's own, and those of what it imports
def test_datumaro_imports_it(tmp_path: Path) -> None:
    datumaro = pytest.importorskip(
        "datumaro", reason="datumaro, in no extra of ours; passed with 1.13.12"
    )
    images = [
        labelled(label, name=f"some folder/ß & <{place}>.png", output=str(place))
        for place, label in enumerate(LABELS.values())
    ]
    for image in images:  # it refuses images that it does not find
        path = tmp_path / "images" / image.ref.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.pixels).save(path)
    (tmp_path / "cvat.xml").write_bytes(written(CvatWriter(make_job()), images)["cvat.xml"])
    dataset = datumaro.Dataset.import_from(str(tmp_path), "cvat")
    labels = dataset.categories()[datumaro.AnnotationType.label]
    assert [label.name for label in labels.items] == list(CLASSES)
    found = {item.id: item for item in dataset}
    assert len(found) == len(images)
    for image in images:
        label = np.zeros_like(image.label)
        for annotation in found[image.ref.name.removesuffix(".png")].annotations:
            assert annotation.type == datumaro.AnnotationType.mask
            label[annotation.image > 0] = annotation.label + 1
        np.testing.assert_array_equal(label, objects(image.label))
