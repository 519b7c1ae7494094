"""The instances of one image, which never overlap: a number for each pixel, a row for each one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import ShapeError

LEAST_SCORE = 1e-5
"""Instances below it are fragments: they keep their pixels in label maps, and stand in no COCO
file, no count and no evaluation. Source: irn, the threshold of its COCO export."""
MAX_INSTANCES = 65_534
"""Of an image: ids have 16 bits, 0 is the background, and files write 65535 for no statement."""


@dataclass(frozen=True)
class InstanceMap:
    """Instances of one image; any number up to `MAX_INSTANCES`, also none.

    Attributes:
        ids: (H, W) uint16: 0 background, r + 1 for instance r.
        classes: (R,) int64, class index of each, 0-based without background.
        scores: (R,) float32 in [0, 1], by which instances of a class are ranked.

    Raises:
        ShapeError: shapes or the highest id do not fit each other.
    """

    ids: NDArray[np.uint16]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.classes)
        highest = int(self.ids.max(initial=0))
        if self.ids.ndim != 2 or self.scores.shape != (count,) or highest > count:
            raise ShapeError(
                f"instances have ids {self.ids.shape} up to {highest}, {count} classes and scores "
                f"{self.scores.shape}: expected (H, W), and one class and score an id"
            )
        if count > MAX_INSTANCES:
            raise ShapeError(f"an image has {count} instances, expected at most {MAX_INSTANCES}")

    def __len__(self) -> int:
        return len(self.classes)

    def counts(self) -> dict[int, int]:
        """Label value -> instances that are no fragments; see `LEAST_SCORE`."""
        whole = self.classes[self.scores >= LEAST_SCORE] + 1
        values, numbers = np.unique(whole, return_counts=True)
        return dict(zip(values.tolist(), numbers.tolist(), strict=True))

    def label_map(self) -> NDArray[np.uint8]:
        """(H, W) uint8: 0 background, class index + 1 of the instance of each pixel."""
        values = np.zeros(len(self) + 1, np.uint8)
        values[1:] = self.classes + 1
        return values[self.ids]

    def without(self, pixels: NDArray[np.bool_]) -> "InstanceMap":
        """The same instances, of which none has these pixels, (H, W); some may have none left."""
        ids = np.where(pixels, np.uint16(0), self.ids)
        return InstanceMap(ids, self.classes, self.scores)
