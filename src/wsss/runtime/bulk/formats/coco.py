"""COCO JSON with masks as compressed run lengths: one annotation a class and image, or an
instance."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from ...instances.instance_map import LEAST_SCORE
from ..inputs.images import LabelledImage
from .contract import Need, Writer
from .rle import Region, coco_text, id_regions, regions
from .text import colour, compact_json, origin, plain, plain_scores


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
