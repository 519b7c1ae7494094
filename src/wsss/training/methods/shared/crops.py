"""From an augmented crop to network input, and from label maps to label grids."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....runtime.io.image_io import read_image, read_label_map
from ....runtime.io.palette import IGNORE_INDEX
from ....runtime.refine.geometry import Align, resize
from ...data.image_set import Sample
from ...data.transforms import Crop, augment
from ...engine.loop import Batch
from ...engine.run import Run
from ...recipe.sections import Augmentation


def crop_arrays(crop: Crop) -> dict[str, NDArray[np.generic]]:
    """Arrays of one sample: `image` (3, S, S) uint8, `inside` (4,), and `label_map` if there."""
    arrays: dict[str, NDArray[np.generic]] = {
        "image": np.ascontiguousarray(crop.image.transpose(2, 0, 1)),
        "inside": np.asarray(crop.inside, np.int64),
    }
    if crop.labels is not None:
        arrays["label_map"] = np.ascontiguousarray(crop.labels)
    return arrays


def inside_pixels(batch: Batch) -> Tensor:
    """(B, 1, S, S) bool: which pixels of crops show the image, for `Network.forward`."""
    pixels = batch["image"]
    rows = torch.arange(pixels.shape[-2], device=pixels.device)
    columns = torch.arange(pixels.shape[-1], device=pixels.device)
    top, left, bottom, right = batch["inside"].T[..., None]
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    inside: Tensor = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return inside


def vote_labels(
    label_map: NDArray[np.uint8], stride: int, grid: tuple[int, int], *, corners: bool
) -> NDArray[np.uint8]:
    """Reduce a seed to the grid of a network by a vote in each stride x stride block.

    Two-sided as the seed itself: a cell is of class k where k wins among classes and everything
    else; else background where background has most pixels; else IGNORE.

    Args:
        label_map: (S, S) uint8, 255 undecided.
        corners: blocks are centred on pixel i * stride instead of starting there.

    Source: the 8 x 8 mean of the CRF probabilities in the released AffinityNet code.
    Deviation: hard votes take the place of probabilities, which are close to 0 or 1 after a CRF.
    """
    before = stride // 2 if corners else 0
    padded = np.full((grid[0] * stride, grid[1] * stride), IGNORE_INDEX, np.uint8)
    rows = min(label_map.shape[0], padded.shape[0] - before)
    columns = min(label_map.shape[1], padded.shape[1] - before)
    padded[before : before + rows, before : before + columns] = label_map[:rows, :columns]
    blocks = padded.reshape(grid[0], stride, grid[1], stride)
    result = np.full(grid, IGNORE_INDEX, np.uint8)
    best = np.zeros(grid, np.int64)
    kinds = [int(value) for value in np.unique(padded)]
    shares = {value: (blocks == value).sum(axis=(1, 3)) for value in kinds}
    objects = sum((n for v, n in shares.items() if v not in (0, IGNORE_INDEX)), np.zeros(grid, int))
    none = np.zeros(grid, np.int64)
    background, undecided = shares.get(0, none), shares.get(IGNORE_INDEX, none)
    result[background > np.maximum(objects, undecided)] = 0
    for value in kinds:
        if value not in (0, IGNORE_INDEX):
            wins = (shares[value] > best) & (shares[value] > background + undecided)
            result[wins] = value
            best = np.maximum(best, shares[value])
    return result


def nearest_labels(
    label_map: NDArray[np.uint8], stride: int, *, corners: bool
) -> NDArray[np.uint8]:
    """One label a cell: pixel i * stride under `corners`, else the middle of stride pixels."""
    rows, columns = (cell_pixels(side, stride, corners=corners) for side in label_map.shape)
    return np.ascontiguousarray(label_map[rows[:, None], columns])


def on_label_grid(logits: Tensor, batch: Batch, align: Align) -> Tensor:
    """(B, C, h, w) logits in float32, resized to the grid of the batch's `labels`."""
    height, width = batch["labels"].shape[-2:]
    return resize(logits.float(), (height, width), align)


def inside_cells(batch: Batch, stride: int, align: Align) -> Tensor:
    """Whether the cells of `nearest_labels` show the image.

    Args:
        batch: with `image` (B, 3, S, S) and `inside` (B, 4) of `crop_arrays`.

    Returns:
        (B, h, w) bool.
    """
    side = batch["image"].shape[-1]
    pixels = torch.from_numpy(cell_pixels(side, stride, corners=align == "corners"))
    pixels = pixels.to(batch["inside"].device)
    top, left, bottom, right = batch["inside"].T[..., None]
    in_rows, in_columns = (pixels >= top) & (pixels < bottom), (pixels >= left) & (pixels < right)
    both: Tensor = in_rows[:, :, None] & in_columns[:, None, :]
    return both


def cell_pixels(side: int, stride: int, *, corners: bool) -> NDArray[np.int64]:
    """The row, or column, of the pixel that each cell takes."""
    first = 0 if corners else stride // 2
    return np.minimum(np.arange(0, side, stride) + first, side - 1)


CropSampler = Callable[[int, np.random.Generator], dict[str, NDArray[np.generic]]]
"""What `Objective.sample` is."""
LabelPath = Callable[[Sample], Path]
"""Where the label map of an image lies."""
Reduce = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""(S, S) label map -> (h, w) labels of the cells."""


def stage_labels(run: Run, stage: str) -> LabelPath:
    """Those that a stage has made."""
    return lambda sample: run.folder / stage / f"{sample.name}.png"


def crop_sampler(
    run: Run, settings: Augmentation, reduce: Reduce, label_path: LabelPath
) -> CropSampler:
    """Arrays of `crop_arrays`, and `labels` (h, w) of the cells."""
    samples = run.train_set.samples

    def sample(index: int, generator: np.random.Generator) -> dict[str, NDArray[np.generic]]:
        chosen = samples[index]
        label_map = read_label_map(label_path(chosen))
        arrays = crop_arrays(augment(read_image(chosen.image_path), label_map, settings, generator))
        return arrays | {"labels": reduce(np.asarray(arrays.pop("label_map"), np.uint8))}

    return sample
