"""Readers of label formats, written from their descriptions and not from our writers.

Each gives label maps by the name of the image, or by the output's name where the format has no
other; what a format cannot hold (255) reads as 0.
"""

import ast
import io
import json
from urllib.parse import unquote
from xml.etree import ElementTree

import cv2
import numpy as np
from labelled_images import Labels
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsss.training.data.coco_masks import rasterise


def read_png(files: dict[str, bytes]) -> dict[str, Labels]:
    return {
        path.removeprefix("masks/").removesuffix(".png"): np.array(Image.open(io.BytesIO(content)))
        for path, content in files.items()
    }


def read_pair(files: dict[str, bytes]) -> dict[str, Labels]:
    """Label maps by output, of which each id has one value; what is void in one is in both."""
    labels = {}
    for path, content in files.items():
        folder, _, output = path.removesuffix(".png").partition("/")
        if folder == "SegmentationClass":
            label = np.array(Image.open(io.BytesIO(content)))
            ids = np.array(Image.open(io.BytesIO(files[f"SegmentationObject/{output}.png"])))
            assert ids.dtype == np.uint8  # up to 254 instances
            np.testing.assert_array_equal(ids == 255, label == 255)
            np.testing.assert_array_equal(ids == 0, label == 0)
            for value in np.unique(ids).tolist():
                assert len(np.unique(label[ids == value])) == 1
            labels[output] = label
    assert len(files) == 2 * len(labels)
    return labels


def read_coco(files: dict[str, bytes]) -> dict[str, Labels]:
    (content,) = files.values()
    document = json.loads(content)
    labels = {
        image["id"]: np.zeros((image["height"], image["width"]), np.uint8)
        for image in document["images"]
    }
    for annotation in document["annotations"]:
        label = labels[annotation["image_id"]]
        label[rasterise(annotation["segmentation"], *label.shape)] = annotation["category_id"]
    return {image["file_name"]: labels[image["id"]] for image in document["images"]}


def yolo_names(content: bytes) -> list[str]:
    """Class names of a `data.yaml`; in double quotes YAML's escapes are Python's."""
    lines = content.decode("ascii").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("names:"))
    pairs = [line.strip().split(": ", 1) for line in lines[start + 1 :]]
    assert [index for index, _ in pairs] == [str(place) for place in range(len(pairs))]
    return [ast.literal_eval(name) for _, name in pairs]


def read_yolo(files: dict[str, bytes], sizes: dict[str, tuple[int, int]]) -> dict[str, Labels]:
    """Label maps by output; YOLO's files say nothing of the images' sizes (height, width)."""
    labels = {}
    for path, content in files.items():
        if path == "yolo/data.yaml":
            continue
        output = path.removeprefix("yolo/labels/").removesuffix(".txt")
        height, width = sizes[output]
        label = np.zeros((height, width), np.uint8)
        for line in content.decode("ascii").splitlines():
            index, *numbers = line.split(" ")
            corners = np.array(numbers, float).reshape(-1, 2)
            assert corners.min() >= 0 and corners.max() <= 1 and len(corners) >= 3
            # polygon2mask of ultralytics: cut to whole pixels, then filled with the edge
            pixels = (corners * [width, height]).astype(np.int32)
            cv2.fillPoly(label, [pixels], int(index) + 1)
        labels[output] = label
    return labels


def brush_values(rle: list[int]) -> NDArray[np.uint8]:
    """Label Studio's run lengths, bit by bit, as rle-pack's `decode` describes them."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    size, word = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    values = np.empty(size, np.uint8)
    filled = 0
    while filled < size:
        repeated = read(1)
        count = read(lengths[read(2)]) + 1
        if repeated:
            values[filled : filled + count] = read(word)
        else:
            values[filled : filled + count] = [read(word) for _ in range(count)]
        filled += count
    assert filled == size and len(bits) - place <= 16 and "1" not in bits[place:]
    return values


def read_labelstudio(files: dict[str, bytes]) -> dict[str, Labels]:
    config = ElementTree.fromstring(files["labelstudio_config.xml"])
    (strokes,) = config.findall("BrushLabels")
    (picture,) = config.findall("Image")
    names = [label.get("value") for label in strokes]
    labels = {}
    for path in sorted(set(files) - {"labelstudio_config.xml"}):
        for task in json.loads(files[path]):
            (prediction,) = task["predictions"]
            label: Labels | None = None
            for result in prediction["result"]:
                assert result["type"] == "brushlabels" and result["value"]["format"] == "rle"
                assert result["from_name"] == strokes.get("name")
                assert result["to_name"] == picture.get("name") == strokes.get("toName")
                size = result["original_height"], result["original_width"]
                if label is None:
                    label = np.zeros(size, np.uint8)
                assert label.shape == size
                alpha = brush_values(result["value"]["rle"]).reshape(*size, 4)[..., 3]
                (name,) = result["value"]["brushlabels"]
                label[alpha > 0] = names.index(name) + 1
            address = task["data"][picture.get("value", "").removeprefix("$")]
            name = unquote(address.removeprefix("/data/local-files/?d="))
            assert name == task["data"]["name"]
            labels[name] = np.zeros((0, 0), np.uint8) if label is None else label
    return labels


def read_cvat(files: dict[str, bytes]) -> dict[str, Labels]:
    root = ElementTree.fromstring(files["cvat.xml"])
    assert root.findtext("version") == "1.1"
    names = [label.findtext("name") for label in root.findall("meta/task/labels/label")]
    labels = {}
    for image in root.findall("image"):
        label = np.zeros((int(image.get("height", "")), int(image.get("width", ""))), np.uint8)
        for mask in image:
            box = [int(mask.get(key, "")) for key in ("left", "top", "width", "height")]
            left, top, width, height = box
            counts = [int(count) for count in mask.get("rle", "").split(",")]
            inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
            part = label[top : top + height, left : left + width]
            assert part.shape == inside.shape
            part[inside] = names.index(mask.get("label")) + 1
        labels[image.get("name", "")] = label
    return labels


def read_labelme(files: dict[str, bytes], classes: list[str]) -> dict[str, Labels]:
    """Label maps by output; LabelMe's files name classes only where they occur."""
    labels = {}
    for path, content in files.items():
        document = json.loads(content)
        size = document["imageWidth"], document["imageHeight"]
        picture = Image.new("L", size)
        for shape in document["shapes"]:
            assert shape["shape_type"] == "polygon" and len(shape["points"]) >= 3
            value = classes.index(shape["label"]) + 1
            corners = [tuple(point) for point in shape["points"]]
            ImageDraw.Draw(picture).polygon(corners, outline=value, fill=value)
        labels[path.removeprefix("labelme/").removesuffix(".json")] = np.array(picture)
    return labels
