"""Instances as a pair of PNGs an image, the form of VOC's instance segmentation."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from ...instances.files import CLASSES, OBJECTS, encode_ids
from ...io.image_io import encode_label_map
from ...io.palette import IGNORE_INDEX
from ..inputs.images import LabelledImage
from .contract import JobView, Need, Writer
from .text import origin_text, plain_scores


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
