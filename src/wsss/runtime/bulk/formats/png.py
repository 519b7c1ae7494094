"""Label maps as palette PNGs, the form that every segmentation tool reads."""

from collections.abc import Iterator
from typing import ClassVar

import cv2
import numpy as np

from ...io.image_io import encode_grey, encode_label_map
from ..inputs.images import LabelledImage
from .contract import JobView, Need, Writer
from .text import origin_text

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
