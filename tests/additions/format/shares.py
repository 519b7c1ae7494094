"""How much of each image every class covers, as one CSV file."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..inputs.images import LabelledImage
from .contract import Writer


class SharesWriter(Writer):
    """`shares.csv`: a row an image, a column a class, in per cent of the pixels."""

    def entry(self, image: LabelledImage) -> Any:
        counts = np.bincount(image.label.ravel(), minlength=len(self.job.classes) + 1)
        return [image.ref.output, [round(100 * int(n) / image.label.size, 2) for n in counts[1:]]]

    def collect(self, entries: Iterable[Any]) -> Iterator[tuple[str, Iterator[bytes]]]:
        def rows() -> Iterator[bytes]:
            yield (",".join(["image", *self.job.classes]) + "\n").encode()
            for name, shares in entries:
                yield (",".join([name, *map(str, shares)]) + "\n").encode()

        yield "shares.csv", rows()
