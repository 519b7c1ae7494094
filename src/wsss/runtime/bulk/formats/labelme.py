"""LabelMe: one JSON file an image, polygons that people correct."""

import posixpath
from collections.abc import Iterator

from ..inputs.images import LabelledImage
from .contract import JobView, Writer
from .polygons import class_rings
from .text import compact_json, origin, plain

FORMAT_VERSION = "6.3.1"
"""The release of LabelMe that the files were checked against."""


class LabelMeWriter(Writer):
    """`labelme/<output>.json`, to be put beside the image, where LabelMe looks for it.

    Corners are middles of pixels: LabelMe fills a polygon together with its edge and gets the mask
    back exactly. Its polygons have no holes, so a bridge joins them to the ring; pixels without a
    statement belong to no shape. `imagePath` is the image's own name, because that place is
    beside it.
    """

    def __init__(self, job: JobView) -> None:
        super().__init__(job)
        self._names = [plain(name) for name in job.classes]
        self._origin = origin(job)

    def files(self, image: LabelledImage) -> Iterator[tuple[str, bytes]]:
        height, width = image.label.shape
        shapes = [
            {
                "label": self._names[value - 1],
                "points": (ring + 0.5).tolist(),
                "group_id": None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
            }
            for value, ring in class_rings(image.label)
        ]
        document = {
            "version": FORMAT_VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": plain(posixpath.basename(image.ref.name)),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
            "wsss": self._origin,
        }
        yield f"labelme/{image.ref.output}.json", f"{compact_json(document)}\n".encode("ascii")
