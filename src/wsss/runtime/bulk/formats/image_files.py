"""Formats that write files for each image: label maps, confidences, overlays, scores, instances."""

import io
import struct
import zipfile
from collections.abc import Iterator
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ...instances.files import CLASSES, OBJECTS, encode_ids
from ...io.image_io import encode_grey, encode_label_map
from ...io.palette import IGNORE_INDEX
from ...report.pictures import draw_labels, encode_jpeg
from ..inputs.images import LabelledImage
from .contract import JobView, Need, Writer, origin_text, plain, plain_scores

FOLDER = "masks"


class PngWriter(Writer):
    """`masks/<output>.png`: label values under the job's palette; 255 says nothing.

    The origin stands in a tEXt chunk named `wsss`.
    """

    def __init__(self, job: JobView) -> None:
        super().__init__(job)
        self._text = {"wsss": origin_text(job)}

    def files(self, image: LabelledImage) -> Iterator[tuple[str, bytes]]:
        yield (
            f"{FOLDER}/{image.ref.output}.png",
            encode_label_map(image.label, self.job.palette, self._text),
        )


class ConfidenceWriter(Writer):
    """`confidence/<output>.png`: 8-bit grey, 255 times the confidence, rounded.

    The origin stands in a tEXt chunk named `wsss`.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"confidence"})

    def __init__(self, job: JobView) -> None:
        super().__init__(job)
        self._text = {"wsss": origin_text(job)}

    def files(self, image: LabelledImage) -> Iterator[tuple[str, bytes]]:
        assert image.confidence is not None
        grey = np.asarray(cv2.convertScaleAbs(image.confidence, alpha=255), np.uint8)
        yield f"confidence/{image.ref.output}.png", encode_grey(grey, self._text)


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


_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The first date that a zip file can hold."""


class ScoresWriter(Writer):
    """`scores/<output>.npz`, for `np.load`.

    scores: (C + 1, h, w) float16, plane 0 the background.
    classes: (C,) names without background.
    wsss: the origin, JSON.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"scores"})

    def __init__(self, job: JobView) -> None:
        super().__init__(job)
        self._described = {
            "classes": np.array([plain(name) for name in job.classes], np.str_),
            "wsss": np.array(origin_text(job)),
        }

    def files(self, image: LabelledImage) -> Iterator[tuple[str, bytes]]:
        assert image.scores is not None
        arrays = {"scores": image.scores.astype(np.float16), **self._described}
        yield f"scores/{image.ref.output}.npz", _encode_npz(arrays)


def _encode_npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    """What `np.savez_compressed` writes, with a date that never changes.

    Level 1: level 6 saves an eighth and takes half as long again; planes of absent classes vanish
    at any level.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy", _EARLIEST)
            archive.writestr(
                member, content.getbuffer(), compress_type=zipfile.ZIP_DEFLATED, compresslevel=1
            )
    return buffer.getvalue()


class InstancesWriter(Writer):
    """`SegmentationObject/<output>.png` and `SegmentationClass/<output>.png`.

    Ids count from 1, the class under each is its label value, 255 in both says nothing; an image
    with more than 254 instances has its ids in 16 bits, see `instances.files`. All instances are
    there, fragments too; the scores stand in the tEXt chunk `scores` of the ids, the origin in
    both files in `wsss`.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"instances"})

    def __init__(self, job: JobView) -> None:
        super().__init__(job)
        self._text = {"wsss": origin_text(job)}

    def files(self, image: LabelledImage) -> Iterator[tuple[str, bytes]]:
        assert image.instances is not None
        found, void = image.instances, image.label == IGNORE_INDEX
        classes = np.where(void, np.uint8(IGNORE_INDEX), found.label_map())
        yield (
            f"{OBJECTS}/{image.ref.output}.png",
            encode_ids(found.ids, void, plain_scores(found.scores), self._text),
        )
        yield (
            f"{CLASSES}/{image.ref.output}.png",
            encode_label_map(classes, self.job.palette, self._text),
        )
