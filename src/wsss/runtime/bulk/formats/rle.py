"""Label and instance maps as runs of equal pixels, and the run-length text of COCO."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...io.palette import IGNORE_INDEX

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Region:
    """All pixels of one value, as runs along the rows of a map.

    Attributes:
        value: label value, 1 to 254; or id of an instance.
        starts: (n,) flat index of the first pixel of each run, ascending; n >= 1.
        lengths: (n,) pixels of each run; two runs never touch.
        shape: (rows, columns) of the map that the indices belong to.
    """

    value: int
    starts: Integers
    lengths: Integers
    shape: tuple[int, int]

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.lengths.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """First row, first column, rows, columns of the smallest rectangle around the pixels."""
        width = self.shape[1]
        first_rows, first_columns = np.divmod(self.starts, width)
        last_rows, last_columns = np.divmod(self.starts + self.lengths - 1, width)
        top, bottom = int(first_rows[0]), int(last_rows[-1])
        if (first_rows != last_rows).any():  # a run goes on in the next row: both edges are met
            return top, 0, bottom - top + 1, width
        left, right = int(first_columns.min()), int(last_columns.max())
        return top, left, bottom - top + 1, right - left + 1

    @property
    def counts(self) -> Integers:
        """Lengths of the runs outside and inside in turn, beginning outside, perhaps with 0."""
        ends = self.starts + self.lengths
        gaps = self.starts.copy()
        gaps[1:] -= ends[:-1]
        turns = np.stack((gaps, self.lengths), 1).ravel()
        rest = self.shape[0] * self.shape[1] - int(ends[-1])
        return np.append(turns, rest) if rest else turns


def regions(labels: NDArray[np.uint8]) -> Iterator[Region]:
    """The classes of a label map, ascending; not the background, nor what has no statement.

    Args:
        labels: (H, W) uint8, not empty; transposed, the runs go down the columns.
    """
    return (region for region in id_regions(labels) if region.value != IGNORE_INDEX)


def id_regions(ids: NDArray[np.uint8 | np.uint16]) -> Iterator[Region]:
    """The values of a map but 0, ascending; every other one is an id.

    Args:
        ids: (H, W), not empty; transposed, the runs go down the columns.
    """
    flat = np.ascontiguousarray(ids).ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.append(0, changes)
    lengths = np.append(changes, flat.size) - starts
    # Runs by value, of one value by place: one pass for any number of values.
    order = np.argsort(flat[starts], kind="stable")
    starts, lengths = starts[order], lengths[order]
    values, firsts = np.unique(flat[starts], return_index=True)
    ends = np.append(firsts[1:], order.size)
    shape = (ids.shape[0], ids.shape[1])
    for value, first, end in zip(values.tolist(), firsts.tolist(), ends.tolist(), strict=True):
        if value:
            yield Region(value, starts[first:end], lengths[first:end], shape)


def coco_text(counts: Integers) -> str:
    """Run lengths as the text that COCO's `segmentation.counts` holds.

    From the fourth on, a count is written as its difference from the one two before it: 5 bits a
    character, lowest first, the sixth bit says that more follow; character 48 is zero.

    Args:
        counts: of runs down the columns, as `Region.counts` gives them for a transposed map.

    Source: `rleToString` of the COCO API (maskApi.c).
    """
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    characters: list[NDArray[np.uint8]] = []
    used: list[NDArray[np.bool_]] = []
    open_ = np.ones(rest.size, bool)
    while open_.any():
        digit = rest & 31
        rest >>= 5  # keeps the sign
        used.append(open_)
        open_ = open_ & (rest != np.where(digit & 16, -1, 0))
        characters.append((digit + 32 * open_ + 48).astype(np.uint8))
    return np.stack(characters, 1)[np.stack(used, 1)].tobytes().decode("ascii")
