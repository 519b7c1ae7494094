"""What `wsss bench` works on: affinities and CAMs of a trained run, or of drawn photographs.

A drawn image behaves like a photograph.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..errors import ConfigError, DataError
from ..runtime.io.image_io import read_image
from ..runtime.io.score_maps import ScoreMaps
from ..runtime.refine.geometry import image_tensor, resize
from ..runtime.refine.seeds import background_score, full_size_scores
from ..training.data.image_set import ImageSet, Sample, spread
from ..training.data.readers import read_image_set
from ..training.predict.run_predictor import RunPredictor
from .crf import CrfCase
from .walk import WalkCase

SIZE = (375, 500)
"""Height and width of most VOC photographs."""
CHANNELS = 448
"""Of AffinityNet's features."""


def draw_photo(seed: int, size: tuple[int, int] = SIZE) -> tuple[NDArray[np.uint8], list[Tensor]]:
    """Two blobs before a background, shaded and textured at several scales.

    Returns:
        (H, W, 3) uint8 RGB, and the (H, W) bool mask of each blob.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    image = 90 + 50 * _clouds(generator, 3, size)
    masks = []
    for place in (0.3, 0.68):
        rows = torch.linspace(0, 1, height)[:, None] - 0.5
        columns = (torch.linspace(0, 1, width)[None] - place) * width / height
        distance = (rows**2 + columns**2).sqrt() + 0.05 * _clouds(generator, 1, size)[0]
        mask = distance < 0.27
        colour = 60 + 140 * torch.rand(3, 1, 1, generator=generator)
        image = torch.where(mask, colour + 25 * _clouds(generator, 3, size), image)
        masks.append(mask)
    image = image + 6 * torch.randn(3, height, width, generator=generator)
    return image.clamp(0, 255).byte().permute(1, 2, 0).numpy(), masks


def photo_features(image: NDArray[np.uint8], stride: int, seed: int = 0) -> Tensor:
    """(1, 448, h, w): blurred colours at three scales behind a fixed random layer.

    Likeness falls with contrast across edges and stays high within a region, as with trained
    features: affinities exp(-distance * 8) span 0.01 to 1 with a median of about 0.8.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = image_tensor(image) / 255
    grid = tuple(-(-side // stride) for side in image.shape[:2])
    blurred = [
        F.interpolate(F.avg_pool2d(pixels, k, 1, k // 2), grid, mode="area") for k in (5, 17, 33)
    ]
    layer = torch.randn(CHANNELS, 9, 1, 1, generator=generator)
    return F.elu(F.conv2d(torch.cat(blurred, 1), layer))


def drawn_cams(masks: list[Tensor], size: tuple[int, int], map_stride: int = 4) -> ScoreMaps:
    """CAMs as classifiers make them: high in the middle of an object, fading over its border."""
    planes = torch.stack([mask.float() for mask in masks])[None]
    kernel = size[0] // 6 * 2 + 1
    by_rows = F.avg_pool2d(planes, (kernel, 1), 1, (kernel // 2, 0))
    soft = F.avg_pool2d(by_rows, (1, kernel), 1, (0, kernel // 2)) ** 2
    grid = tuple(-(-side // map_stride) for side in size)
    cams = F.interpolate(soft, grid, mode="bilinear")[0]
    cams = cams / cams.amax((1, 2), keepdim=True)
    return ScoreMaps(np.arange(len(masks), dtype=np.int64), cams.numpy(), size)


def _clouds(generator: torch.Generator, channels: int, size: tuple[int, int]) -> Tensor:
    """(channels, H, W) smooth noise of about unit range, coarse waves stronger than fine ones."""
    total = torch.zeros(1, channels, *size)
    for cells in (3, 7, 17, 41):
        coarse = torch.randn(1, channels, cells, cells, generator=generator)
        total += F.interpolate(coarse, size, mode="bicubic") / cells**0.7
    return total[0]


def drawn_walk_case(stride: int, num_images: int) -> WalkCase:
    """Features of drawn photographs, and the CAMs of their two objects with a background plane."""
    features, scores = [], []
    for seed in range(num_images):
        image, masks = draw_photo(seed)
        features.append(photo_features(image, stride))
        cams = full_size_scores(drawn_cams(masks, SIZE), "reference")
        planes = torch.cat([background_score(cams, "power", 16.0), cams])[None]
        scores.append(F.interpolate(planes, features[-1].shape[-2:], mode="area"))
    return WalkCase(stride, torch.cat(features), torch.cat(scores))


def drawn_crf_case(seed: int, num_classes: int) -> CrfCase:
    """A drawn photograph with CAMs of its two objects; further classes respond weakly anywhere."""
    image, masks = draw_photo(seed)
    cams = full_size_scores(drawn_cams(masks, SIZE), "reference")
    generator = torch.Generator().manual_seed(seed)
    if num_classes > len(cams):
        others = 0.15 * _clouds(generator, num_classes - len(cams), SIZE).clamp(0, 1)
        cams = torch.cat([cams, others])
    return CrfCase(f"drawn {seed}", image, cams[:num_classes])


GRID_SIZE = (375, 500)
"""Photographs are brought to the grid of this height and width, the commonest of VOC."""
ALPHA = 16.0
"""The exponent of the background in the walk, as published for AffinityNet."""


def walk_cases(
    model: Path | None, data: Path | None, *, strides: Sequence[int], count: int
) -> list[WalkCase]:
    """One case a stride, of `count` images: of a run and its image set, else drawn.

    Raises:
        ConfigError: only one of run and image set is given; ArtifactError: their classes differ.
    """
    opened = _open(model, data)
    if opened is None:
        return [drawn_walk_case(stride, count) for stride in strides]
    return [_walk_case(*opened, stride, count) for stride in strides]


def crf_cases(
    model: Path | None, data: Path | None, *, num_classes: Sequence[int]
) -> list[CrfCase]:
    """One case for each number of classes that an image has, and one with all of the run's."""
    opened = _open(model, data)
    if opened is None:
        return [drawn_crf_case(0, number) for number in (*num_classes, 20)]
    predictor, images = opened
    labelled = _labelled(images)
    cases = []
    for number in num_classes:
        alike = [sample for sample in labelled if len(sample.labels or ()) == number]
        cases += [_crf_case(predictor, sample, sample.labels or ()) for sample in alike[:1]]
    return [*cases, _crf_case(predictor, labelled[0], range(len(predictor.classes)))]


def _open(model: Path | None, data: Path | None) -> tuple[RunPredictor, ImageSet] | None:
    if model is None and data is None:
        return None
    if model is None or data is None:
        raise ConfigError("`model` and `data` belong together: give both, or none of them")
    predictor, images = RunPredictor(model, "cpu"), read_image_set(data)
    images.require_classes(predictor.classes, f"run '{model}'")
    return predictor, images


def _labelled(images: ImageSet) -> list[Sample]:
    labelled = [sample for sample in images.samples if sample.labels]
    if not labelled:
        raise DataError(f"image set '{images.root}' has no image with a class: take another `data`")
    return labelled


def _walk_case(predictor: RunPredictor, images: ImageSet, stride: int, count: int) -> WalkCase:
    """Two classes an image at most, so that all have the same number of planes."""
    grid = (-(-GRID_SIZE[0] // stride), -(-GRID_SIZE[1] // stride))
    labelled = _labelled(images)
    features, scores = [], []
    for sample in spread(labelled, count):
        image = read_image(sample.image_path)
        maps = predictor.score_maps(image, (sample.labels or ())[:2], "cam")
        cams = torch.zeros(2, *grid)
        cams[: len(maps.scores)] = resize(torch.from_numpy(maps.scores)[None], grid, "reference")[0]
        scores.append(torch.cat([background_score(cams, "power", ALPHA), cams]))
        features.append(resize(predictor.affinity_features(image), grid, "reference"))
    return WalkCase(stride, torch.cat(features), torch.stack(scores))


def _crf_case(predictor: RunPredictor, sample: Sample, classes: Sequence[int]) -> CrfCase:
    image = read_image(sample.image_path)
    maps = predictor.score_maps(image, classes, "cam")
    scores: Tensor = full_size_scores(maps, predictor.recipe.cam.align)
    return CrfCase(sample.name, image, scores)
