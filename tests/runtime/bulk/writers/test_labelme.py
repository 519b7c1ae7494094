"""LabelMe's JSON, by itself and in LabelMe's own reader."""

import json
from pathlib import Path

import numpy as np
import pytest
from labelled_images import CLASSES, LABELS, labelled, make_job, objects, written
from PIL import Image

from wsss.runtime.bulk.formats.polygons import LabelMeWriter


def test_a_shape_is_a_polygon_through_middles_of_pixels() -> None:
    label = np.zeros((5, 8), np.uint8)
    label[1:3, 2:7] = 1
    label[4] = 255
    files = written(LabelMeWriter(make_job()), [labelled(label, name="a/b c.jpg")])
    document = json.loads(files["labelme/a/b.json"])
    (shape,) = document["shapes"]
    assert shape["label"] == "cat" and shape["shape_type"] == "polygon"
    assert sorted(shape["points"]) == [[2.5, 1.5], [2.5, 2.5], [6.5, 1.5], [6.5, 2.5]]
    assert document["imagePath"] == "b c.jpg" and document["imageData"] is None
    assert (document["imageHeight"], document["imageWidth"]) == (5, 8)


@pytest.mark.filterwarnings("ignore")  # LabelMe's own, and those of what it imports
def test_labelme_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    labelme = pytest.importorskip(
        "labelme", reason="labelme, in no extra of ours; passed with 6.3.1", exc_type=ImportError
    )
    for place, label in enumerate(LABELS.values()):
        image = labelled(label, name=f"x/{place}.png", output=str(place))
        Image.fromarray(image.pixels).save(tmp_path / f"{place}.png")
        (content,) = written(LabelMeWriter(make_job()), [image]).values()
        path = tmp_path / f"{place}.json"
        path.write_bytes(content)
        opened = labelme.LabelFile(str(path))
        assert opened.image_path == f"{place}.png"
        values = {name: value for value, name in enumerate(CLASSES, 1)}
        found, _ = labelme.utils.shapes_to_label(label.shape, opened.shapes, values)
        np.testing.assert_array_equal(found, objects(label))
