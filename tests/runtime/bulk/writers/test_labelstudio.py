"""Label Studio's tasks and configuration."""

import json
from dataclasses import replace

import numpy as np
import pytest
from labelled_images import CLASSES, LABELS, NAMES, blobs, labelled, make_job, objects, written

from wsss.runtime.bulk.formats.contract import plain
from wsss.runtime.bulk.formats.labelstudio import TASKS_PER_FILE, LabelStudioWriter
from wsss.runtime.bulk.inputs.images import ImageRef, LabelledImage


def _task(image: LabelledImage) -> dict:
    return LabelStudioWriter(make_job()).entry(image)


@pytest.mark.parametrize(
    ("source", "span", "address"),
    [
        ("/images/a/b c.jpg", None, "/data/local-files/?d=a/b%20c.jpg"),
        ("s3://bucket/a/b c.jpg", None, "s3://bucket/a/b c.jpg"),
        ("https://host/a.jpg", None, "https://host/a.jpg"),
        ("s3://bucket/a.tar", (512, 1000), "/data/local-files/?d=a/b%20c.jpg"),
        ("zip://a.jpg::s3://bucket/a.zip", None, "/data/local-files/?d=a/b%20c.jpg"),
        ("memory://a.jpg", None, "/data/local-files/?d=a/b%20c.jpg"),
    ],
)
def test_where_the_image_is(source: str, span: tuple[int, int] | None, address: str) -> None:
    image = replace(labelled(blobs()), ref=ImageRef("a/b c.jpg", source, "a/b c", span))
    assert _task(image)["data"] == {"image": address, "name": "a/b c.jpg"}


def test_labels_are_predictions_of_a_version() -> None:
    first, second = make_job(), make_job()
    second.provenance["model"] = "1" * 64
    versions = [
        LabelStudioWriter(job).entry(labelled(blobs()))["predictions"][0]["model_version"]
        for job in (first, make_job(), second)
    ]
    assert versions[0] == versions[1] != versions[2]
    assert versions[0].startswith("wsss-")


def test_sizes_are_those_of_the_displayed_image() -> None:
    results = _task(labelled(blobs(20, 31)))["predictions"][0]["result"]
    assert results
    for result in results:
        assert (result["original_height"], result["original_width"]) == (20, 31)
        assert result["image_rotation"] == 0


def test_many_tasks_are_spread_over_files() -> None:
    writer = LabelStudioWriter(make_job())
    entry = writer.entry(labelled(np.ones((1, 1), np.uint8)))
    entries = [{**entry, "data": {"name": place}} for place in range(2 * TASKS_PER_FILE + 1)]
    files = {path: b"".join(pieces) for path, pieces in writer.collect(entries)}
    config, *paths = files
    assert config == "labelstudio_config.xml"
    assert paths == [f"labelstudio/0000{number}.json" for number in range(3)]
    tasks = [json.loads(files[path]) for path in paths]
    assert [len(some) for some in tasks] == [TASKS_PER_FILE, TASKS_PER_FILE, 1]
    assert [task["data"]["name"] for some in tasks for task in some] == list(range(len(entries)))


REASON = "label-studio-sdk, in no extra of ours; passed with 2.1.2"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("classes", [CLASSES, tuple(NAMES[:2])])
def test_label_studio_takes_configuration_and_tasks(classes: tuple[str, ...]) -> None:
    interfaces = pytest.importorskip(
        "label_studio_sdk.label_interface", reason=REASON, exc_type=ImportError
    )
    images = [
        labelled(label, name=f"{place}.jpg", output=str(place))
        for place, label in enumerate(LABELS.values())
    ]
    files = written(LabelStudioWriter(make_job(classes)), images)
    interface = interfaces.LabelInterface(files["labelstudio_config.xml"].decode())
    interface.validate()
    for task in json.loads(files["labelstudio/00000.json"]):
        assert interface.validate_task({"data": task["data"]})
        for prediction in task["predictions"]:
            assert interface.validate_prediction(prediction)
            for result in prediction["result"]:
                assert interface.validate_region(result)
                assert not interface.validate_region({**result, "from_name": "unknown"})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_label_studio_exports_the_masks_again() -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason=REASON)
    label = blobs()
    results = _task(labelled(label))["predictions"][0]["result"]
    # What its converter gets: the value's keys beside those of the result.
    layers = brush.decode_from_annotation(
        "label", [{**result, **result["value"]} for result in results]
    )
    found = np.zeros_like(label)
    for value, name in enumerate(CLASSES, 1):
        found[layers[f"label-{plain(name)}-0"] > 0] = value
    np.testing.assert_array_equal(found, objects(label))
