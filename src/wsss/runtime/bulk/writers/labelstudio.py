"""Label Studio: tasks to import, with the labels as brush strokes that people correct."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from ..images import LabelledImage
from .brush import brush_bytes
from .contract import JobView, Writer
from .rle import regions
from .text import colour, compact_json, origin_text, plain

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
