"""What `wsss bench` works on: affinities and CAMs of a trained run, or of drawn photographs."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..runtime.io.image_io import read_image
from ..runtime.refine.geometry import resize
from ..runtime.refine.seeds import background_score, full_size_scores
from ..training.data.image_set import ImageSet, Sample, spread
from ..training.data.readers import read_image_set
from ..training.predict.run_predictor import RunPredictor
from .crf import CrfCase
from .photo import drawn_crf_case, drawn_walk_case
from .walk import WalkCase

GRID_SIZE = (375, 500)
"""Photographs are brought to the grid of this height and width, the commonest of VOC."""
ALPHA = 16.0
"""Of the background plane that walks along, as published for AffinityNet."""


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
