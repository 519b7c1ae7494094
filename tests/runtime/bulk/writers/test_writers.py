"""What every output format keeps: label maps come back, names are valid, same input, same bytes."""

import io
import json
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_formats import (
    read_coco,
    read_cvat,
    read_labelme,
    read_labelstudio,
    read_pair,
    read_png,
    read_yolo,
    yolo_names,
)
from labelled_images import (
    CLASSES,
    LABELS,
    NAMES,
    Labels,
    labelled,
    make_job,
    objects,
    written,
)
from PIL import Image

from wsss.runtime.bulk.formats.contract import origin_text, plain
from wsss.runtime.bulk.formats.registry import writer_class, writer_names
from wsss.runtime.bulk.inputs.images import LabelledImage

OURS = [
    "png", "confidence", "scores", "overlay", "coco", "instances", "coco-instances", "yolo",
    "labelstudio", "cvat", "labelme",
]  # fmt: skip
WRITERS = {name: writer_class(name) for name in OURS}


def _written(name: str, images: list[LabelledImage], classes: tuple[str, ...] = CLASSES) -> dict:
    return written(WRITERS[name](make_job(classes)), images)


def _series(maps: dict[str, Labels]) -> list[LabelledImage]:
    return [
        labelled(label, name=f"{index}.jpg", output=str(index), index=index)
        for index, label in enumerate(maps.values())
    ]


def _by_name(read: Callable[[dict], dict]) -> Callable[[dict, list[LabelledImage]], list[Labels]]:
    def labels(files: dict, images: list[LabelledImage]) -> list[Labels]:
        found = read(files)
        assert set(found) == {plain(image.ref.name) for image in images}
        return [found[plain(image.ref.name)] for image in images]

    return labels


def _by_output(read: Callable[..., dict]) -> Callable[[dict, list[LabelledImage]], list[Labels]]:
    def labels(files: dict, images: list[LabelledImage]) -> list[Labels]:
        found = read(files, images)
        assert set(found) == {image.ref.output for image in images}
        return [found[image.ref.output] for image in images]

    return labels


READERS = {
    "png": _by_output(lambda files, _: read_png(files)),
    "coco": _by_name(read_coco),
    "instances": _by_output(lambda files, _: read_pair(files)),
    "coco-instances": _by_name(read_coco),
    "yolo": _by_output(
        lambda files, images: read_yolo(
            files, {image.ref.output: image.label.shape for image in images}
        )
    ),
    "labelstudio": _by_name(read_labelstudio),
    "cvat": _by_name(read_cvat),
    "labelme": _by_output(lambda files, _: read_labelme(files, list(CLASSES))),
}


TELL_OF_255 = ("png", "instances")


@pytest.mark.parametrize("name", READERS)
def test_label_maps_come_back(name: str) -> None:
    images = _series(LABELS)
    found = READERS[name](_written(name, images), images)
    for image, label in zip(images, found, strict=True):
        expected = image.label if name in TELL_OF_255 else objects(image.label)
        if name == "labelstudio" and not expected.any():
            assert not label.any()  # the file of an image without results tells no size
            continue
        np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("name", OURS)
def test_same_input_same_bytes(name: str) -> None:
    first, second = (_written(name, _series(LABELS)) for _ in range(2))
    assert list(first) == list(second)
    assert first == second


@pytest.mark.parametrize("name", OURS)
def test_an_image_gives_the_same_alone_and_among_others(name: str) -> None:
    writer = WRITERS[name](make_job())
    for image in _series(LABELS):
        alone = WRITERS[name](make_job())
        assert list(writer.files(image)) == list(alone.files(image))
        assert writer.entry(image) == alone.entry(image)


@pytest.mark.parametrize("name", READERS)
def test_names_of_images(name: str) -> None:
    """Outputs are named by the job; what stands inside of files is checked here."""
    label = np.array([[1, 0, 2], [1, 1, 255]], np.uint8)
    images = [
        labelled(label, name=image_name, output=f"{index}", index=index)
        for index, image_name in enumerate(NAMES)
    ]
    files = _written(name, images)
    for found in READERS[name](files, images):
        np.testing.assert_array_equal(found, label if name in TELL_OF_255 else objects(label))
    if name == "labelme":
        paths = [json.loads(files[f"labelme/{index}.json"])["imagePath"] for index in range(9)]
        assert paths == [plain(image_name).rpartition("/")[2] for image_name in NAMES]


@pytest.mark.parametrize("name", OURS)
def test_names_of_classes(name: str) -> None:
    classes = tuple(NAMES)
    label = np.arange(len(classes) + 1, dtype=np.uint8).reshape(2, 5)
    files = _written(name, [labelled(label)], classes)
    assert _class_names(name, files) == [plain(class_name) for class_name in classes]


any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)


@given(st.lists(any_text, min_size=1, max_size=3, unique_by=plain), any_text)
def test_any_names(classes: list[str], image_name: str) -> None:
    label = np.arange(len(classes) + 1, dtype=np.uint8)[None]
    image = labelled(label, name=image_name)
    for name in OURS:
        files = _written(name, [image], tuple(classes))
        assert _class_names(name, files) == [plain(class_name) for class_name in classes]
        if name in ("coco", "labelstudio", "cvat"):
            np.testing.assert_array_equal(READERS[name](files, [image]), [label])


def _class_names(name: str, files: dict[str, bytes]) -> list[str]:
    """Class names as the format itself states them, or as the origin does where it has none."""
    if name in ("coco", "coco-instances"):
        (content,) = files.values()
        categories = json.loads(content)["categories"]
        assert [category["id"] for category in categories] == list(range(1, len(categories) + 1))
        return [category["name"] for category in categories]
    if name == "yolo":
        return yolo_names(files["yolo/data.yaml"])
    if name == "labelstudio":
        config = ElementTree.fromstring(files["labelstudio_config.xml"])
        (task,) = json.loads(files["labelstudio/00000.json"])
        results = task["predictions"][0]["result"]
        used = [name for result in results for name in result["value"]["brushlabels"]]
        assert used == [label.get("value") for label in config.iter("Label")]
        return used
    if name == "cvat":
        root = ElementTree.fromstring(files["cvat.xml"])
        names = [label.findtext("name") for label in root.iter("label")]
        assert [mask.get("label") for mask in root.iter("mask")] == names
        return [str(name) for name in names]
    if name == "labelme":
        (content,) = files.values()
        shapes = json.loads(content)["shapes"]
        return list(dict.fromkeys(shape["label"] for shape in shapes))
    if name == "scores":
        (content,) = files.values()
        return np.load(io.BytesIO(content), allow_pickle=False)["classes"].tolist()
    return _origin(name, files)["classes"]


def _origin(name: str, files: dict[str, bytes]) -> dict:
    """The origin, from where each format keeps it."""
    if name in ("png", "confidence"):
        (content,) = files.values()
        return json.loads(Image.open(io.BytesIO(content)).text["wsss"])
    if name == "scores":
        (content,) = files.values()
        return json.loads(np.load(io.BytesIO(content), allow_pickle=False)["wsss"].item())
    if name == "overlay":
        (content,) = files.values()
        return json.loads(Image.open(io.BytesIO(content)).info["comment"])
    if name == "instances":
        origins = [Image.open(io.BytesIO(content)).text["wsss"] for content in files.values()]
        assert len(set(origins)) == 1
        return json.loads(origins[0])
    if name in ("coco", "coco-instances"):
        (content,) = files.values()
        return json.loads(content)["info"]["wsss"]
    if name == "yolo":
        line = files["yolo/data.yaml"].decode("ascii").splitlines()[0]
        return json.loads(line.removeprefix("# wsss: "))
    if name == "labelstudio":
        line = files["labelstudio_config.xml"].decode().splitlines()[0]
        return json.loads(line.removeprefix("<!-- wsss: ").removesuffix(" -->"))
    if name == "cvat":
        return json.loads(ElementTree.fromstring(files["cvat.xml"]).findtext("meta/wsss") or "")
    (content,) = files.values()
    return json.loads(content)["wsss"]


@pytest.mark.parametrize("classes", [CLASSES, tuple(NAMES)])
@pytest.mark.parametrize("name", OURS)
def test_every_output_tells_its_origin(name: str, classes: tuple[str, ...]) -> None:
    files = _written(name, [labelled(np.ones((2, 3), np.uint8))], classes)
    assert _origin(name, files) == json.loads(origin_text(make_job(classes)))


@pytest.mark.parametrize("name", ["coco", "coco-instances", "yolo", "labelstudio", "cvat"])
@pytest.mark.parametrize("classes", [(), CLASSES])
def test_a_job_without_images_gives_valid_files(name: str, classes: tuple[str, ...]) -> None:
    files = _written(name, [], classes)
    assert READERS[name](files, []) == []


def test_these_are_all_formats() -> None:
    assert writer_names()[: len(OURS)] == OURS
