"""Formats made of runs of equal pixels: COCO and CVAT, and the runs of label and instance maps."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from ...instances.instance_map import LEAST_SCORE
from ...io.palette import IGNORE_INDEX
from ..inputs.images import LabelledImage
from .contract import Need, Writer, colour, compact_json, origin, origin_text, plain, plain_scores

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Region:
    """All pixels of one value, as runs along the rows of a map.

    Attributes:
        value: label value, 1 to 254; or id of an instance.
        starts: (n,) flat index of the first pixel of each run, ascending; n >= 1.
        lengths: (n,) pixels of each run; two runs never touch.
        shape: (rows, columns) of the map that the indices belong to.
    """

    value: int
    starts: Integers
    lengths: Integers
    shape: tuple[int, int]

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.lengths.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """First row, first column, rows, columns of the smallest rectangle around the pixels."""
        width = self.shape[1]
        first_rows, first_columns = np.divmod(self.starts, width)
        last_rows, last_columns = np.divmod(self.starts + self.lengths - 1, width)
        top, bottom = int(first_rows[0]), int(last_rows[-1])
        if (first_rows != last_rows).any():  # a run goes on in the next row: both edges are met
            return top, 0, bottom - top + 1, width
        left, right = int(first_columns.min()), int(last_columns.max())
        return top, left, bottom - top + 1, right - left + 1

    @property
    def counts(self) -> Integers:
        """Lengths of the runs outside and inside in turn, beginning outside, perhaps with 0."""
        ends = self.starts + self.lengths
        gaps = self.starts.copy()
        gaps[1:] -= ends[:-1]
        turns = np.stack((gaps, self.lengths), 1).ravel()
        rest = self.shape[0] * self.shape[1] - int(ends[-1])
        return np.append(turns, rest) if rest else turns


def regions(labels: NDArray[np.uint8]) -> Iterator[Region]:
    """The classes of a label map, ascending; not the background, nor what has no statement.

    Args:
        labels: (H, W) uint8, not empty; transposed, the runs go down the columns.
    """
    return (region for region in id_regions(labels) if region.value != IGNORE_INDEX)


def id_regions(ids: NDArray[np.uint8 | np.uint16]) -> Iterator[Region]:
    """The values of a map but 0, ascending; every other one is an id.

    Args:
        ids: (H, W), not empty; transposed, the runs go down the columns.
    """
    flat = np.ascontiguousarray(ids).ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.append(0, changes)
    lengths = np.append(changes, flat.size) - starts
    # Runs by value, of one value by place: one pass for any number of values.
    order = np.argsort(flat[starts], kind="stable")
    starts, lengths = starts[order], lengths[order]
    values, firsts = np.unique(flat[starts], return_index=True)
    ends = np.append(firsts[1:], order.size)
    shape = (ids.shape[0], ids.shape[1])
    for value, first, end in zip(values.tolist(), firsts.tolist(), ends.tolist(), strict=True):
        if value:
            yield Region(value, starts[first:end], lengths[first:end], shape)


def coco_text(counts: Integers) -> str:
    """Run lengths as the text that COCO's `segmentation.counts` holds.

    From the fourth on, a count is written as its difference from the one two before it: 5 bits a
    character, lowest first, the sixth bit says that more follow; character 48 is zero.

    Args:
        counts: of runs down the columns, as `Region.counts` gives them for a transposed map.

    Source: `rleToString` of the COCO API (maskApi.c).
    """
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    characters: list[NDArray[np.uint8]] = []
    used: list[NDArray[np.bool_]] = []
    open_ = np.ones(rest.size, bool)
    while open_.any():
        digit = rest & 31
        rest >>= 5  # keeps the sign
        used.append(open_)
        open_ = open_ & (rest != np.where(digit & 16, -1, 0))
        characters.append((digit + 32 * open_ + 48).astype(np.uint8))
    return np.stack(characters, 1)[np.stack(used, 1)].tobytes().decode("ascii")


class CocoWriter(Writer):
    """`coco.json`, for pycocotools and all that read it.

    An annotation is the whole region of a class in an image: labels of pixels do not tell objects
    apart. It is no crowd (`iscrowd` 0) all the same, because training code drops crowds and
    evaluation ignores them. Category ids are label values. Ids of images and annotations count
    from 1 in the order of the list.
    """

    path: ClassVar[str] = "coco.json"

    def entry(self, image: LabelledImage) -> dict[str, Any]:
        height, width = image.label.shape
        return {
            "image": {"file_name": plain(image.ref.name), "height": height, "width": width},
            "annotations": list(self._annotations(image)),
        }

    def collect(self, entries: Iterable[Any]) -> Iterator[tuple[str, Iterator[bytes]]]:
        yield self.path, self._document(entries)

    def _annotations(self, image: LabelledImage) -> Iterator[dict[str, Any]]:
        for region in regions(image.label.T):  # COCO's runs go down the columns
            yield _annotation(region, region.value)

    def _document(self, entries: Iterable[Any]) -> Iterator[bytes]:
        head = {
            "info": {"description": "labels made by wsss", "wsss": origin(self.job)},
            "licenses": [],
            "categories": [
                {"id": value, "name": plain(name), "color": colour(self.job, value)}
                for value, name in enumerate(self.job.classes, 1)
            ],
        }
        yield compact_json(head).removesuffix("}").encode("ascii")
        yield b',"images":['
        yield from _joined(
            {"id": image_id, **entry["image"]} for image_id, entry in enumerate(entries, 1)
        )
        yield b'],"annotations":['
        yield from _joined(
            {"id": annotation_id, "image_id": image_id, **annotation}
            for annotation_id, (image_id, annotation) in enumerate(_numbered(entries), 1)
        )
        yield b"]}\n"


class CocoInstancesWriter(CocoWriter):
    """`instances.json`: an annotation an instance, with its `score`.

    Fragments (a score below 1e-5) and instances without a pixel have none. Otherwise as
    `CocoWriter` says; torchvision, detectron2 and pycocotools read it as ground truth, and
    `wsss eval --instances` as predictions.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"instances"})
    path: ClassVar[str] = "instances.json"

    def _annotations(self, image: LabelledImage) -> Iterator[dict[str, Any]]:
        assert image.instances is not None
        found = image.instances
        scores = plain_scores(found.scores)
        for region in id_regions(found.ids.T):
            row = region.value - 1
            if found.scores[row] >= LEAST_SCORE:
                yield {**_annotation(region, int(found.classes[row]) + 1), "score": scores[row]}


def _annotation(region: Region, category: int) -> dict[str, Any]:
    """Of a region of the transposed map."""
    height, width = region.shape[::-1]
    left, top, columns, rows = region.box
    return {
        "category_id": category,
        "segmentation": {"size": [height, width], "counts": coco_text(region.counts)},
        "area": region.area,
        "bbox": [left, top, columns, rows],
        "iscrowd": 0,
    }


def _numbered(entries: Iterable[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    for image_id, entry in enumerate(entries, 1):
        for annotation in entry["annotations"]:
            yield image_id, annotation


def _joined(values: Iterable[Any]) -> Iterator[bytes]:
    separator = ""
    for value in values:
        yield f"{separator}\n{compact_json(value)}".encode("ascii")
        separator = ","


class CvatWriter(Writer):
    """`cvat.xml`, for "Upload annotations" of a CVAT task that holds the same images.

    CVAT finds images by name, relative to the task's root. A mask is the rectangle around a
    class with its runs along rows, beginning outside.
    """

    def entry(self, image: LabelledImage) -> dict[str, Any]:
        height, width = image.label.shape
        masks = []
        for region in regions(image.label):
            top, left, rows, columns = region.box
            part = image.label[top : top + rows, left : left + columns] == region.value
            (inside,) = regions(part.view(np.uint8))
            runs = ", ".join(map(str, inside.counts.tolist()))
            masks.append([region.value, left, top, columns, rows, runs])
        return {"name": plain(image.ref.name), "size": [width, height], "masks": masks}

    def collect(self, entries: Iterable[Any]) -> Iterator[tuple[str, Iterator[bytes]]]:
        yield "cvat.xml", self._document(entries)

    def _document(self, entries: Iterable[Any]) -> Iterator[bytes]:
        yield (
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
            "  <meta>\n    <task>\n      <name>wsss</name>\n      <mode>annotation</mode>\n"
            f"      <labels>\n{self._labels()}      </labels>\n    </task>\n"
            f"    <wsss>{_text(origin_text(self.job))}</wsss>\n  </meta>\n"
        ).encode()
        for number, entry in enumerate(entries):
            yield self._image(number, entry).encode()
        yield b"</annotations>\n"

    def _labels(self) -> str:
        return "".join(
            f"        <label><name>{_text(plain(name))}</name>"
            f"<color>{colour(self.job, value)}</color>"
            "<type>mask</type><attributes></attributes></label>\n"
            for value, name in enumerate(self.job.classes, 1)
        )

    def _image(self, number: int, entry: dict[str, Any]) -> str:
        width, height = entry["size"]
        masks = "".join(
            f"    <mask label={quoteattr(plain(self.job.classes[value - 1]))}"
            ' source="auto" occluded="0"'
            f' rle="{runs}" left="{left}" top="{top}" width="{columns}" height="{rows}"'
            ' z_order="0"></mask>\n'
            for value, left, top, columns, rows, runs in entry["masks"]
        )
        return (
            f'  <image id="{number}" name={quoteattr(entry["name"])}'
            f' width="{width}" height="{height}">\n{masks}  </image>\n'
        )


def _text(text: str) -> str:
    """Character data; a carriage return as it stands would be read as a newline."""
    return escape(text, {"\r": "&#13;"})
