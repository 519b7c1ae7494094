"""Label maps as palette PNGs, the form that every segmentation tool reads."""

from collections.abc import Iterator

from ...image_io import encode_label_map
from ..images import LabelledImage
from .contract import JobView, Writer
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
