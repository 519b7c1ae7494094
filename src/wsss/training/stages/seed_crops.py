"""Augmented crops of photographs with their seeds or labels, reduced to the grid of a network."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...runtime.image_io import read_image, read_label_map
from ..data.transforms import augment
from ..run import Run
from ..sections.train import Augmentation
from .crops import crop_arrays

Reduce = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""(S, S) label map -> (h, w) labels of the cells."""


def seed_sampler(
    run: Run, settings: Augmentation, reduce: Reduce, stage: str = "seeds"
) -> Callable[[int, np.random.Generator], dict[str, NDArray[np.generic]]]:
    """What `Objective.sample` is for pairs of cells: arrays of a crop, and `labels` (h, w).

    Args:
        stage: that made the label maps.
    """
    samples = run.train_set.samples
    seeds = run.folder / stage

    def sample(index: int, generator: np.random.Generator) -> dict[str, NDArray[np.generic]]:
        chosen = samples[index]
        seed = read_label_map(seeds / f"{chosen.name}.png")
        crop = augment(read_image(chosen.image_path), seed, settings, generator)
        arrays = crop_arrays(crop)
        label_map = np.asarray(arrays.pop("label_map"), np.uint8)
        return arrays | {"labels": reduce(label_map)}

    return sample
