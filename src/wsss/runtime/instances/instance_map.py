"""The instances of one image, which never overlap: a number for each pixel, a row for each one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import ShapeError


@dataclass(frozen=True)
class InstanceMap:
    """Instances of one image; any number, also none.

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

    def __len__(self) -> int:
        return len(self.classes)
