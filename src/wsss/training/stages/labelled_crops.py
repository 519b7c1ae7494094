"""Augmented crops of photographs with their seeds or labels, reduced to the grid of a network."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.image_io import read_image, read_label_map
from ..data.image_set import Sample
from ..data.transforms import augment
from ..run import Run
from ..sections.train import Augmentation
from .crops import crop_arrays

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
