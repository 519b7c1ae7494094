"""Image sets of a few 4 x 6 images in every layout that is read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsss.runtime.io.image_io import write_label_map

HEIGHT, WIDTH = 4, 6


def write_image(path: Path, grey: int = 0) -> Path:
    """An image of one grey value; different values make different files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((HEIGHT, WIDTH, 3), grey, np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
    return path


def write_text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def column_mask(*indices: int) -> NDArray[np.uint8]:
    """One column an index, the rest background."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, : len(indices)] = indices
    return mask


def write_mask(path: Path, *indices: int) -> Path:
    """A mask file; see `column_mask`."""
    write_label_map(path, column_mask(*indices))
    return path


def annotation(*objects: str) -> str:
    """A VOC annotation; parts of objects have names too, which are no classes."""
    inner = "".join(
        f"<object><name>{name}</name><difficult>1</difficult><part><name>head</name></part></object>"
        for name in objects
    )
    return f"<annotation><filename>x.jpg</filename>{inner}</annotation>"


def write_voc(
    devkit: Path,
    lists: Mapping[str, Sequence[str]],
    objects: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """A devkit with the images of the lists, and annotations of these objects."""
    names = sorted({name for part in lists.values() for name in part})
    for grey, name in enumerate(names):
        write_image(devkit / "JPEGImages" / f"{name}.jpg", 10 * grey)
    for part, members in lists.items():
        write_text(devkit / "ImageSets" / "Segmentation" / f"{part}.txt", *members)
    for name, found in (objects or {}).items():
        write_text(devkit / "Annotations" / f"{name}.xml", annotation(*found))
    return devkit


def write_folder(root: Path, labels: str, images: Sequence[str]) -> Path:
    """Images in `images/` and the text of a `labels.csv`."""
    for grey, name in enumerate(images):
        write_image(root / "images" / name, 10 * grey)
    write_text(root / "labels.csv", *labels.split("\n"))
    return root


def coco_document(
    images: Sequence[str], annotations: Sequence[dict[str, object]]
) -> dict[str, object]:
    """Images get the ids 1, 2, ...; classes are cat (id 7) and ant (id 9)."""
    return {
        "images": [
            {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for number, name in enumerate(images, 1)
        ],
        "annotations": list(annotations),
        "categories": [{"id": 9, "name": "ant"}, {"id": 7, "name": "cat"}],
    }


def write_coco(path: Path, document: dict[str, object]) -> Path:
    return write_text(path, json.dumps(document))


def rectangle(top: int, left: int, height: int, width: int) -> list[float]:
    """A polygon around whole pixels."""
    bottom, right = top + height, left + width
    return [left, top, right, top, right, bottom, left, bottom]
