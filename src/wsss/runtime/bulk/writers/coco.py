"""COCO JSON: one annotation a class and image, masks as compressed run lengths."""

from collections.abc import Iterable, Iterator
from typing import Any

from ..images import LabelledImage
from .contract import Writer
from .rle import coco_text, regions
from .text import colour, compact_json, origin, plain


class CocoWriter(Writer):
    """`coco.json`, for pycocotools and all that read it.

    An annotation is the whole region of a class in an image: labels of pixels do not tell objects
    apart. It is no crowd (`iscrowd` 0) all the same, because training code drops crowds and
    evaluation ignores them. Category ids are label values. Ids of images and annotations count
    from 1 in the order of the list.
    """

    def entry(self, image: LabelledImage) -> dict[str, Any]:
        height, width = image.label.shape
        annotations = []
        for region in regions(image.label.T):  # COCO's runs go down the columns
            left, top, columns, rows = region.box
            annotations.append(
                {
                    "category_id": region.value,
                    "segmentation": {"size": [height, width], "counts": coco_text(region.counts)},
                    "area": region.area,
                    "bbox": [left, top, columns, rows],
                    "iscrowd": 0,
                }
            )
        return {
            "image": {"file_name": plain(image.ref.name), "height": height, "width": width},
            "annotations": annotations,
        }

    def collect(self, entries: Iterable[Any]) -> Iterator[tuple[str, Iterator[bytes]]]:
        yield "coco.json", self._document(entries)

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
            for annotation_id, (image_id, annotation) in enumerate(_annotations(entries), 1)
        )
        yield b"]}\n"


def _annotations(entries: Iterable[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    for image_id, entry in enumerate(entries, 1):
        for annotation in entry["annotations"]:
            yield image_id, annotation


def _joined(values: Iterable[Any]) -> Iterator[bytes]:
    separator = ""
    for value in values:
        yield f"{separator}\n{compact_json(value)}".encode("ascii")
        separator = ","
