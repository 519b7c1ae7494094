"""Where the cells of a grid lie on the pixels of an axis: `geometry` for single places."""

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.float64]


def cell_centres(count: int, length: int, align: str) -> Places:
    """(count,) pixel, perhaps between two, in whose middle each cell of an axis lies.

    Args:
        count: cells of the grid.
        length: of the axis, in pixels.
        align: see `geometry.Align`.
    """
    cells = np.arange(count, dtype=np.float64)
    if align == "corners":
        return cells * ((length - 1) / max(1, count - 1))
    return (cells + 0.5) * -(-length // count) - 0.5


def cells_at(pixels: Places, count: int, length: int, align: str) -> Places:
    """The other way: cell of each pixel, perhaps between two, no further than the last one."""
    if align == "corners":
        places = pixels * ((count - 1) / max(1, length - 1))
    else:
        places = (pixels + 0.5) / -(-length // count) - 0.5
    return places.clip(0, count - 1)
