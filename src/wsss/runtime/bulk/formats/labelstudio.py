"""Label Studio: tasks to import, with the labels as brush strokes that people correct."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from ..inputs.images import LabelledImage
from .contract import JobView, Writer, colour, compact_json, origin_text, plain
from .runs import Region, regions

TASKS_PER_FILE = 1000
"""Label Studio takes at most 250 MB in one import."""

_FETCHED = ("http://", "https://", "s3://", "gs://")
"""Addresses that Label Studio fetches by itself."""


class LabelStudioWriter(Writer):
    """`labelstudio/00000.json` and so on, 1000 tasks each, and `labelstudio_config.xml`.

    The labels are predictions, one result a class, so that nothing counts as checked by a person.
    An image with an address of its own (s3, gs, http) is named by it; others by their name below
    Label Studio's folder of local files (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT).
    `model_version` tells jobs of other models or settings apart; all of the origin stands in the
    configuration's comment.
    """

    def __init__(self, job: JobView) -> None:
        super().__init__(job)
        digest = hashlib.sha256(origin_text(job).encode("ascii")).hexdigest()
        self._version = f"wsss-{digest[:12]}"

    def entry(self, image: LabelledImage) -> dict[str, Any]:
        height, width = image.label.shape
        results = [
            {
                "id": f"class-{region.value}",
                "type": "brushlabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "format": "rle",
                    "rle": brush_bytes(region),
                    "brushlabels": [plain(self.job.classes[region.value - 1])],
                },
            }
            for region in regions(image.label)
        ]
        name = plain(image.ref.name)
        return {
            "data": {"image": _address(image), "name": name},
            "predictions": [{"model_version": self._version, "result": results}],
        }

    def collect(self, entries: Iterable[Any]) -> Iterator[tuple[str, Iterator[bytes]]]:
        yield "labelstudio_config.xml", iter([self._config().encode("utf-8")])
        tasks = iter(entries)
        for number, first in enumerate(tasks):
            some = chain([first], islice(tasks, TASKS_PER_FILE - 1))
            yield f"labelstudio/{number:05}.json", _list(some)

    def _config(self) -> str:
        labels = "".join(
            f'    <Label value={quoteattr(plain(name))} background="{colour(self.job, value)}"/>\n'
            for value, name in enumerate(self.job.classes, 1)
        )
        # Two hyphens would end the comment; inside of a JSON string one can be written otherwise.
        comment = origin_text(self.job).replace("--", "-\\u002d")
        return (
            f"<!-- wsss: {comment} -->\n"
            "<View>\n"
            '  <Image name="image" value="$image" zoom="true"/>\n'
            f'  <BrushLabels name="label" toName="image">\n{labels}  </BrushLabels>\n'
            "</View>\n"
        )


def _address(image: LabelledImage) -> str:
    ref = image.ref
    if ref.span is None and ref.source.startswith(_FETCHED) and "::" not in ref.source:
        return plain(ref.source)
    return f"/data/local-files/?d={quote(plain(ref.name))}"


def _list(tasks: Iterable[Any]) -> Iterator[bytes]:
    opening = "["
    for task in tasks:
        yield f"{opening}\n{compact_json(task)}".encode("ascii")
        opening = ","
    yield b"\n]\n"


_CHANNELS = 4
_VALUE_BITS = 8
_LENGTH_BITS = np.array([3, 4, 8, 16])
_LONGEST = 1 << 16


def brush_bytes(region: Region) -> list[int]:
    """A region as Label Studio's brush: RGBA pixels, 255 inside and 0 outside, run-length coded.

    A head of 53 bits (number of values, bits of a value, the four sizes of a length), then for
    each run: one bit 1, two bits that choose the size, the length less 1, the value.

    Args:
        region: runs along rows.

    Source: `encode_rle` of label-studio-sdk (same bytes), after rle-pack of @thi.ng/umbrella.
    """
    counts = region.counts
    values = np.arange(counts.size) % 2 * 255
    lengths, values = counts[counts > 0] * _CHANNELS, values[counts > 0]
    # A length takes at most 16 bits; the longest pieces of a run come first.
    pieces = (lengths - 1) // _LONGEST + 1
    last = np.cumsum(pieces) - 1
    values = np.repeat(values, pieces)
    rests = lengths - (pieces - 1) * _LONGEST
    lengths = np.full(values.size, _LONGEST)
    lengths[last] = rests
    sizes = np.searchsorted(1 << _LENGTH_BITS, lengths)
    # The last piece of a cut run keeps the size of the others, as in the source.
    sizes[last[pieces > 1]] = len(_LENGTH_BITS) - 1
    widths = 3 + _LENGTH_BITS[sizes] + _VALUE_BITS
    codes = (
        (1 << (widths - 1))
        | (sizes << (widths - 3))
        | ((lengths - 1) << _VALUE_BITS)
        | values
    )  # fmt: skip
    height, width = region.shape
    head = np.concatenate(
        [
            _bits(np.array([height * width * _CHANNELS]), np.array([32])),
            _bits(np.array([_VALUE_BITS - 1]), np.array([5])),
            _bits(_LENGTH_BITS - 1, np.full(_LENGTH_BITS.size, 4)),
        ]
    )
    bits = np.concatenate([head, _bits(codes, widths)])
    # As the source does, a whole byte of zeros follows bits that end with a byte.
    packed: list[int] = np.packbits(np.append(bits, np.zeros(8 - bits.size % 8, bool))).tolist()
    return packed


def _bits(numbers: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The lowest bits of each number, highest first, one number after the other."""
    places = np.arange(int(widths.max()) - 1, -1, -1)
    bits = (numbers[:, None] >> places) & 1
    return np.asarray(bits[places < widths[:, None]], bool)
