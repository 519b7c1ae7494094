"""Labels drawn over their photographs, for people."""

import struct
from collections.abc import Iterator

import numpy as np

from ...io.palette import IGNORE_INDEX
from ...report.pictures import draw_labels, encode_jpeg
from ..inputs.images import LabelledImage
from .contract import JobView, Writer
from .text import origin_text

_LONGEST_COMMENT = 65_533


class OverlayWriter(Writer):
    """`overlays/<output>.jpg`: the photograph, objects tinted by class, 255 hatched.

    Where the model tells instances, these are drawn, each with a line around it. The origin stands
    in the file's comment.
    """

    def __init__(self, job: JobView) -> None:
        super().__init__(job)
        self._comment = _comment_segments(origin_text(job).encode("ascii"))

    def files(self, image: LabelledImage) -> Iterator[tuple[str, bytes]]:
        label, ids = image.label, None
        if image.instances is not None:
            ids = image.instances.ids
            label = np.where(label == IGNORE_INDEX, label, image.instances.label_map())
        drawn = encode_jpeg(draw_labels(image.pixels, label, palette=self.job.palette, ids=ids))
        # JFIF wants its own segment first, right behind the two bytes that start the image.
        (length,) = struct.unpack_from(">H", drawn, 4)
        head = 4 + length
        yield f"overlays/{image.ref.output}.jpg", drawn[:head] + self._comment + drawn[head:]


def _comment_segments(text: bytes) -> bytes:
    pieces = (text[i : i + _LONGEST_COMMENT] for i in range(0, len(text), _LONGEST_COMMENT))
    return b"".join(b"\xff\xfe" + struct.pack(">H", len(piece) + 2) + piece for piece in pieces)
