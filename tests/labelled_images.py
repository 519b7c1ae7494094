"""Label maps, names and jobs for tests of output formats, and what a writer makes of them."""

import json
import os
from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from wsss.runtime.bulk.formats.contract import JobView, Writer
from wsss.runtime.bulk.inputs.images import ImageRef, LabelledImage
from wsss.runtime.instances.instance_map import InstanceMap
from wsss.runtime.io.palette import voc_palette

Labels = NDArray[np.uint8]

CLASSES = ("cat", "dog")


def blobs(height: int = 60, width: int = 83, seed: int = 0) -> Labels:
    """Round regions of two classes with holes and islands in them, some edges not stated."""
    noise = np.random.default_rng(seed).random((height, width))
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    rank = (smooth - smooth.min()) / np.ptp(smooth)
    step = np.digitize(rank, [0.2, 0.35, 0.6, 0.63, 0.75])
    return np.array([1, 2, 0, 255, 1, 0], np.uint8)[step]


def _frame() -> Labels:
    """A ring around a ring around a pixel, touching the edges of the image."""
    labels = np.ones((9, 9), np.uint8)
    labels[1:8, 1:8] = 0
    labels[2:7, 2:7] = 1
    labels[3:6, 3:6] = 2
    labels[4, 4] = 255
    return labels


LABELS: dict[str, Labels] = {
    "one background pixel": np.zeros((1, 1), np.uint8),
    "one pixel": np.ones((1, 1), np.uint8),
    "one pixel, no statement": np.full((1, 1), 255, np.uint8),
    "no class": np.zeros((3, 5), np.uint8),
    "one class everywhere": np.full((4, 3), 2, np.uint8),
    "no statement anywhere": np.full((2, 7), 255, np.uint8),
    "a row": np.array([[1, 0, 1, 1, 2, 255, 1]], np.uint8),
    "a column": np.array([[2], [2], [0], [1]], np.uint8),
    "checkerboard": (np.indices((6, 7)).sum(0) % 2).astype(np.uint8),
    "rings": _frame(),
    "long runs": np.repeat(np.array([1, 0, 2], np.uint8), 90)[:, None].repeat(300, 1),
    "blobs": blobs(),
    "noise": np.random.default_rng(0).choice(np.array([0, 1, 1, 2, 255], np.uint8), (23, 31)),
}

NAMES = [
    "a/b.jpg",
    "with space, <tag> & \"quotes\" 'single'.jpg",
    "line\nbreak\ttab\rreturn.jpg",
    "größe/日本/😀.jpg",
    os.fsdecode(b"caf\xe9.jpg"),
    "control \x01\x7f\x85\u2028.jpg",
    "back\\slash\\xff.jpg",
    "--> ]]> %20 #? {} : - .jpg",
    "no character \ufffe \ud800.jpg",
]


def make_job(classes: Iterable[str] = CLASSES, palette: Labels | None = None) -> JobView:
    provenance = {"model": "0" * 64, "settings": {"background_score": 0.25, "note": "a--b"}}
    return JobView(tuple(classes), voc_palette() if palette is None else palette, provenance)


def components(label: Labels) -> InstanceMap:
    """Each piece of each class as an instance; pieces that touch at a corner alone are two."""
    ids, classes = np.zeros(label.shape, np.uint16), []
    for value in np.unique(label[(label != 0) & (label != 255)]).tolist():
        _, found = cv2.connectedComponents((label == value).astype(np.uint8), connectivity=4)
        for number in range(1, int(found.max()) + 1):
            classes.append(value - 1)
            ids[found == number] = len(classes)
    scores = np.random.default_rng(0).uniform(0.1, 1, len(classes)).astype(np.float32)
    return InstanceMap(ids, np.array(classes, np.int64), scores)


def labelled(
    label: Labels,
    *,
    name: str = "a/b.jpg",
    output: str = "a/b",
    index: int = 0,
    source: str = "/images/a/b.jpg",
) -> LabelledImage:
    """An image with every part that a writer may ask for, made of its label map alone."""
    height, width = label.shape
    generator = np.random.default_rng(0)
    return LabelledImage(
        ImageRef(name=name, source=source, output=output),
        index,
        generator.integers(0, 256, (height, width, 3), np.uint8),
        label,
        generator.random((height, width), np.float32),
        generator.random((len(CLASSES) + 1, 2, 3), np.float32),
        components(label),
    )


def written(writer: Writer, images: Iterable[LabelledImage]) -> dict[str, bytes]:
    """All files of a job of these images; entries go through JSON, as between processes."""
    files: dict[str, bytes] = {}
    entries = []
    for image in images:
        for path, content in writer.files(image):
            assert path not in files
            files[path] = content
        entry = writer.entry(image)
        if entry is not None:
            entries.append(json.loads(json.dumps(entry)))
    for path, pieces in writer.collect(entries):
        assert path not in files
        files[path] = b"".join(pieces)
    return files


def objects(label: Labels) -> Labels:
    """What formats without "no statement" can hold of a label map."""
    return np.where(label == 255, 0, label).astype(np.uint8)
