"""The instances that are really in an image, to measure by."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class InstanceTruth:
    """The instances of one image, each with at least a pixel; they do not overlap.

    Attributes:
        ids: (H, W) uint16: 0 for none, r + 1 for instance r.
        classes: (R,) int64, class index of each.
        void: (H, W) bool, where nothing is known; there `ids` is 0.
    """

    ids: NDArray[np.uint16]
    classes: NDArray[np.int64]
    void: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.classes)


class InstanceSource(Protocol):
    """Where the instances of an image come from."""

    def load(self) -> InstanceTruth:
        """Read them.

        Raises:
            DataError: unreadable, or not what they should be.
        """
        ...

    def fingerprint(self) -> str:
        """Short text that differs where the instances differ, without decoding them."""
        ...
