"""YOLO segmentation labels: polygons as text, one line a region."""

from collections.abc import Iterable, Iterator
from typing import Any

from ..inputs.images import LabelledImage
from .contract import Writer
from .polygons import class_rings
from .text import origin_text, plain


class YoloWriter(Writer):
    """`yolo/labels/<output>.txt` and `yolo/data.yaml`, for `yolo segment train`.

    A line is the class index and the x and y of each corner, as shares of width and height, of
    the middles of pixels: the training code cuts them to whole pixels and gets the mask back
    exactly. YOLO has no holes, so a bridge joins them to the ring; and no pixels without a
    statement, so they count as background. An image without objects has an empty file.
    """

    def files(self, image: LabelledImage) -> Iterator[tuple[str, bytes]]:
        height, width = image.label.shape
        lines = []
        for value, ring in class_rings(image.label):
            shares = ((ring + 0.5) / (width, height)).ravel()
            numbers = " %.6f" * shares.size % tuple(shares.tolist())
            lines.append(f"{value - 1}{numbers}\n")
        yield f"yolo/labels/{image.ref.output}.txt", "".join(lines).encode("ascii")

    def collect(self, entries: Iterable[Any]) -> Iterator[tuple[str, Iterator[bytes]]]:
        names = [
            f"  {index}: {_quoted(plain(name))}" for index, name in enumerate(self.job.classes)
        ]
        lines = [
            f"# wsss: {origin_text(self.job)}",
            "# Put or link the images into the folder `images` beside this file: YOLO looks for",
            "# labels/a/b.txt where the image is images/a/b.jpg.",
            "train: images",
            "val: images",
            f"nc: {len(names)}",
            "names:" if names else "names: {}",
            *names,
        ]
        yield "yolo/data.yaml", iter(["\n".join([*lines, ""]).encode("ascii")])


def _quoted(name: str) -> str:
    """A YAML string in ASCII: Python's escapes of characters are YAML's."""
    escaped = name.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'"{escaped}"'
