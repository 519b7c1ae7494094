"""CVAT for images 1.1: one XML file with a mask for each class and image."""

from collections.abc import Iterable, Iterator
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from ..inputs.images import LabelledImage
from .contract import Writer
from .rle import regions
from .text import colour, origin_text, plain


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
