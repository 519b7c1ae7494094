"""The walk of images of different sizes and different classes in one batch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...errors import ShapeError
from .pairs import PairOffsets
from .random_walk import Form, Method, propagate


def propagate_images(
    scores: Sequence[Tensor],
    affinities: Sequence[Tensor],
    *,
    radius: int = 5,
    steps: int = 256,
    tolerance: float = 1e-4,
    method: Method = "chebyshev",
    form: Form = "auto",
) -> list[Tensor]:
    """`propagate` of every image; each result equals that of the image alone.

    Images are padded to the largest height, width and number of maps: cells without affinity keep
    their score of 0 and give nothing to others. Put images of similar size together, for padding
    costs as much as image.

    Args:
        scores: one (n, h, w) an image, on one device and of one type.
        affinities: one (K, h, w) an image.

    Returns:
        One (n, h, w) an image.

    Raises:
        ShapeError: an image's scores and affinity do not fit each other; see also `propagate`.
    """
    if len(scores) != len(affinities):
        raise ShapeError(
            f"{len(scores)} images have scores and {len(affinities)} affinities: give one each"
        )
    num_pairs = len(PairOffsets(radius))
    for index, (maps, affinity) in enumerate(zip(scores, affinities, strict=True)):
        fits = maps.ndim == 3 and affinity.shape == (num_pairs, *maps.shape[1:])
        if not fits or 0 in maps.shape[1:]:
            raise ShapeError(
                f"image {index}: `scores` are {tuple(maps.shape)} and `affinity` "
                f"{tuple(affinity.shape)}, expected (n, h, w) and ({num_pairs}, h, w), h, w >= 1"
            )
    if not scores:
        return []
    largest = [max(maps.shape[axis] for maps in scores) for axis in range(3)]
    walked = propagate(
        torch.stack([_grow(maps, largest) for maps in scores]),
        torch.stack([_grow(planes, [len(planes), *largest[1:]]) for planes in affinities]),
        radius=radius,
        steps=steps,
        tolerance=tolerance,
        method=method,
        form=form,
    )
    return [
        whole[: maps.shape[0], : maps.shape[1], : maps.shape[2]]
        for whole, maps in zip(walked, scores, strict=True)
    ]


def _grow(planes: Tensor, size: Sequence[int]) -> Tensor:
    """Zeros behind each axis, up to `size`."""
    missing = [wanted - found for wanted, found in zip(size, planes.shape, strict=True)]
    return pad(planes, (0, missing[2], 0, missing[1], 0, missing[0]))
