"""Where the tiles of a huge image lie, and how much each of them counts where two overlap."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LARGEST_OVERLAP = 256
"""Pixels that neighbours share; half of it is what a pixel at a seam sees beyond it."""


@dataclass(frozen=True)
class Cuts:
    """One axis of an image, cut into tiles of one size, of which at most two cover a pixel.

    Attributes:
        starts: first pixel of each tile, ascending.
        size: of every tile, in pixels.
    """

    starts: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, length: int, longest: int) -> "Cuts":
        """As few tiles as go, each as small as goes with those.

        Args:
            length: of the axis, in pixels.
            longest: tile, >= 8.
        """
        if length <= longest:
            return cls((0,), length)
        overlap = min(LARGEST_OVERLAP, longest // 4)
        count = math.ceil((length - overlap) / (longest - overlap))
        size = math.ceil((length + (count - 1) * overlap) / count)
        return cls(tuple(i * (length - size) // (count - 1) for i in range(count)), size)

    def tile(self, i: int) -> slice:
        """Pixels of a tile."""
        return slice(self.starts[i], self.starts[i] + self.size)

    def core(self, i: int) -> slice:
        """Pixels that no other tile covers."""
        end = self.starts[i] + self.size
        first = self.starts[i - 1] + self.size if i else 0
        return slice(first, self.starts[i + 1] if i + 1 < len(self.starts) else end)

    def overlap(self, i: int) -> slice | None:
        """Pixels that tile i shares with tile i + 1; None: there is no such tile."""
        if not 0 <= i < len(self.starts) - 1:
            return None
        return slice(self.starts[i + 1], self.starts[i] + self.size)

    def window(self, i: int) -> NDArray[np.float32]:
        """(size,) what tile i counts at each of its pixels; all tiles of a pixel sum to 1."""
        window = np.ones(self.size, np.float32)
        if (before := self.overlap(i - 1)) is not None:
            rise = _rise(before)
            window[: len(rise)] = rise
        if (after := self.overlap(i)) is not None:
            rise = _rise(after)
            window[-len(rise) :] = 1 - rise
        return window


def _rise(overlap: slice) -> NDArray[np.float32]:
    """From 0 to 1, flat at both ends: what is wrong at the very edge of a tile hardly counts."""
    count = overlap.stop - overlap.start
    angle = np.pi / 2 * (np.arange(count) + 0.5) / count
    return np.asarray(np.sin(angle) ** 2, np.float32)
