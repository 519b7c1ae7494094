"""Grid cells that belong to one instance: those whose centroids lie in one calm patch.

Source: IRNet (Ahn, Cho, Kwak, CVPR 2019) and its published code. Deviation: clusters are numbered
by their first cell instead of by patch, which matters to nothing but ties.
"""

import cv2
import numpy as np
from numpy.typing import NDArray


def cluster_cells(
    displacement: NDArray[np.floating], centroids: NDArray[np.int64], *, radius: float = 2.5
) -> NDArray[np.int64]:
    """Cluster of every cell of one image.

    Cells whose vector is shorter than `radius` are calm; 4-connected calm cells are a patch. Cells
    whose centroids lie in one patch are a cluster, and so are those whose centroids lie in none.

    Args:
        displacement: (2, h, w), (dy, dx) in grid cells.
        centroids: (2, h, w), row and column, as `refine_centroids` returns them.
        radius: in grid cells.

    Returns:
        (h, w), 0..K-1; cluster k has its first cell, row by row, before that of cluster k + 1.
    """
    # In float64 squares of float32 are exact, so that no rounding decides who is calm.
    squares = np.square(displacement, dtype=np.float64).sum(0)
    calm = (squares < radius**2).astype(np.uint8)
    _, patches = cv2.connectedComponents(calm, connectivity=4)
    return _number_by_first_cell(patches[centroids[0], centroids[1]])


def _number_by_first_cell(labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """(h, w) labels -> the same parts as 0..K-1 in the order of their first cells."""
    _, first, part = np.unique(labels, return_index=True, return_inverse=True)
    return first.argsort().argsort()[part].reshape(labels.shape)
