"""Which grid cells form a pair: offsets of the half-disc, and the cells that each offset joins.

Pure Python, shared by affinity (features, boundaries), the walk and the training losses, and later
by graph builders. Source: AffinityNet (Ahn, Kwak, CVPR 2018) and its published code.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, get_args

from ...errors import ConfigError

Borders = Literal["reference", "full"]
"""`full`: every pair inside the image. `reference`: the published rule, where a pair exists only
if its from-cell lies in rows 0..h-r and columns r-1..w-r, which cuts the links along the margin."""

Region = tuple[slice, slice]
"""Rows and columns of a rectangle of grid cells."""


class PairKind(IntEnum):
    """What the label map says about a pair; the first three index the affinity loss."""

    BACKGROUND = 0
    """Both cells are background."""
    FOREGROUND = 1
    """Both cells show the same class."""
    NEGATIVE = 2
    """The cells are labelled differently."""
    NONE = 3
    """No pair, or a cell is to be ignored: no loss."""


@dataclass(frozen=True)
class PairOffsets:
    """Offsets from a cell to its partners; each unordered pair of cells appears once.

    Plane k of every (B, K, h, w) affinity belongs to `offsets[k]`, and its cell p to the pair
    (p, p + offsets[k]).

    Raises:
        ConfigError: the radius is below 2, so that no pair would exist.
    """

    radius: int
    """Partners lie strictly nearer than this, in grid cells."""
    offsets: tuple[tuple[int, int], ...] = field(init=False, repr=False)
    """(dy, dx): right in the same row, then row by row below; 34 for radius 5, 152 for 10."""

    def __post_init__(self) -> None:
        reach = self.radius - 1
        if reach < 1:
            raise ConfigError(f"`radius` is {self.radius}, must be at least 2 grid cells")
        same_row = [(0, dx) for dx in range(1, self.radius)]
        below = [
            (dy, dx)
            for dy in range(1, self.radius)
            for dx in range(-reach, self.radius)
            if dy**2 + dx**2 < self.radius**2
        ]
        object.__setattr__(self, "offsets", (*same_row, *below))

    def __len__(self) -> int:
        return len(self.offsets)

    def from_cells(
        self, offset: tuple[int, int], size: tuple[int, int], borders: Borders
    ) -> Region:
        """Cells p of a grid of `size` (height, width) for which the pair (p, p + offset) exists.

        The rectangle is empty where the grid is too small.

        Raises:
            ConfigError: unknown `borders`.
        """
        if borders not in get_args(Borders):
            choices = ", ".join(get_args(Borders))
            raise ConfigError(f"unknown `borders` '{borders}': choose one of {choices}")
        (dy, dx), (height, width) = offset, size
        top, bottom, left, right = 0, height - dy, max(0, -dx), width - max(0, dx)
        if borders == "reference":
            bottom, left = height - self.radius + 1, self.radius - 1
            right = width - self.radius + 1
        return slice(top, max(top, bottom)), slice(left, max(left, right))


def shifted(region: Region, offset: tuple[int, int]) -> Region:
    """The to-cells that belong to the from-cells of `region`."""
    (rows, columns), (dy, dx) = region, offset
    return (
        slice(rows.start + dy, rows.stop + dy),
        slice(columns.start + dx, columns.stop + dx),
    )


def is_empty(region: Region) -> bool:
    """Whether a region holds no cell."""
    rows, columns = region
    return bool(rows.stop <= rows.start or columns.stop <= columns.start)
