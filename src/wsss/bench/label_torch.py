"""What `wsss bench label` measures in torch: photographs on the disk, and the ways to label them.

A labeller starts from pixels; reading and writing are the same for all of them and stand in
`bench/label.py`. The dense CRF is left out everywhere, it has a bench of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ConfigError
from ..runtime.refine.cam import normalise_cam
from ..runtime.refine.feature_affinity import affinity_from_features
from ..runtime.refine.pseudo_labels import scores_on_grid
from ..runtime.refine.random_walk import propagate
from ..training.data.image_set import spread
from ..training.data.readers import read_image_set
from ..training.methods.contract import AffinitySource
from ..training.methods.shared.affinity_network import AffinityNetwork
from ..training.methods.shared.classifier import (
    CamClassifier,
    class_probabilities,
    image_activation,
)
from ..training.methods.shared.segmenter_network import Segmenter, segment_logits
from ..training.predict.run_predictor import CLASS_THRESHOLD, RunPredictor
from ..training.recipe.recipe import Recipe, WalkRecipe
from . import stages
from .cam_torch import BFLOAT16, PUBLISHED, TORCH, channels_last, images_apart
from .machine import has_bfloat16
from .published_pipeline import as_published, label_of_walked, published_label, source_features
from .stages import StageClock, charged

Image = NDArray[np.uint8]
Classes = tuple[int, ...] | None
Labeller = Callable[[Image, Classes, StageClock], Image | None]
"""(image (H, W, 3), classes in it or None) -> (H, W) label map; None where the time of a part was
scaled instead."""


@dataclass(frozen=True)
class Photo:
    """An image on the disk.

    Attributes:
        labels: classes in it, None where nobody said.
    """

    path: Path
    labels: Classes


def label_photos(data: Path, classes: Sequence[str], owner: str, count: int) -> list[Photo]:
    """Images of a set, those with classes if there are such.

    Args:
        classes, owner: of the model, see `ImageSet.require_classes`.

    Raises:
        ArtifactError: the set has other classes than the model; DataError: no image set.
    """
    images = read_image_set(data)
    images.require_classes(classes, owner)
    photos = [Photo(sample.image_path, sample.labels) for sample in images.samples]
    return spread([photo for photo in photos if photo.labels] or photos, count)


def calibration_images(data: Path, photos: Sequence[Photo]) -> list[Image]:
    """Images of the set apart from those that are measured, for int8."""
    paths = [sample.image_path for sample in read_image_set(data).samples]
    return images_apart(paths, {photo.path for photo in photos})


def torch_labellers(predictor: RunPredictor, way: str, device: torch.device) -> dict[str, Labeller]:
    """Of the run, by form; the segmenter has no published one."""
    recipe = predictor.recipe
    if way == "segmenter":
        segmenter = predictor.network("segmenter", Segmenter)
        labellers = {TORCH: _segmenting(segmenter, recipe, device, reduced=False)}
        if has_bfloat16(device):
            fast = channels_last(segmenter)
            labellers[BFLOAT16] = _segmenting(fast, recipe, device, reduced=True)
        return labellers
    walking = predictor.walk_recipe()
    source = predictor.method.affinity
    if source is None or source.features is None:
        raise ConfigError(
            f"run '{predictor.folder}' is of method {recipe.method}: this is measured for methods "
            "whose affinities are made of features"
        )
    classifier, affinity = predictor.network("cam", CamClassifier), predictor.affinity_network()
    apart = as_published(classifier), as_published(affinity)
    labellers = {
        PUBLISHED: _publishing(*apart, source, walking, device),
        TORCH: _walking(classifier, affinity, source, walking, device, reduced=False),
    }
    if has_bfloat16(device):
        fast_networks = channels_last(classifier), channels_last(affinity)
        labellers[BFLOAT16] = _walking(*fast_networks, source, walking, device, reduced=True)
    return labellers


def _publishing(
    classifier: CamClassifier,
    network: AffinityNetwork,
    source: AffinitySource,
    recipe: WalkRecipe,
    device: torch.device,
) -> Labeller:
    def label(image: Image, classes: Classes, clock: StageClock) -> Image | None:
        # The released code is always told the classes; where nobody knows them, ours are found.
        if classes is None:
            classes = _find_classes(classifier, image, recipe, clock, device, reduced=False)
        return published_label(classifier, network, source, recipe, image, classes, clock, device)

    return label


def _walking(
    classifier: CamClassifier,
    network: AffinityNetwork,
    source: AffinitySource,
    recipe: WalkRecipe,
    device: torch.device,
    *,
    reduced: bool,
) -> Labeller:
    """`RunPredictor` in mode `walk`, with a stage for each step.

    Args:
        reduced: networks in bfloat16; the walk stays in float32.
    """
    settings = source.walk_settings(recipe)
    modules = (classifier.backbone, classifier.classifier)

    def label(image: Image, classes: Classes, clock: StageClock) -> Image:
        if classes is None:
            classes = _find_classes(classifier, image, recipe, clock, device, reduced=reduced)
        with clock.stage(stages.RESIZE_AND_MERGE), _precision(device, reduced):
            with charged(clock, stages.CAM_NETWORK, modules):
                activation = image_activation(classifier, image, recipe.cam, device)
            maps = normalise_cam(activation, classes, (image.shape[0], image.shape[1]))
            with charged(clock, stages.AFFINITY_NETWORK, [network]):
                features = source_features(source, network, image, recipe, device)
        if not classes:  # nothing walks
            return np.zeros(maps.size, np.uint8)
        with clock.stage(stages.LABEL):
            grid = (features.shape[-2], features.shape[-1])
            planes = scores_on_grid(maps, grid, settings).to(device)[None]
        with clock.stage(stages.AFFINITY):
            affinity = affinity_from_features(
                features, radius=settings.radius, beta=settings.beta, borders=settings.borders
            )
        with clock.stage(stages.WALK):
            walked = propagate(
                planes,
                affinity,
                radius=settings.radius,
                steps=settings.steps,
                tolerance=settings.tolerance,
            )[0].clamp_(min=0)
        with clock.stage(stages.LABEL):
            return label_of_walked(walked, maps, settings)

    return label


def _segmenting(
    network: Segmenter, recipe: Recipe, device: torch.device, *, reduced: bool
) -> Labeller:
    """`RunPredictor` in mode `segmenter`, with a stage for each step."""
    section, align = recipe.segmenter, recipe.cam.align

    def label(image: Image, classes: Classes, clock: StageClock) -> Image:
        with (
            clock.stage(stages.RESIZE_AND_MERGE),
            _precision(device, reduced),
            charged(clock, stages.SEGMENTER, [network]),
        ):
            planes = segment_logits(network, image, section, align, device)
        with clock.stage(stages.LABEL):
            return np.asarray(planes.argmax(0).to(torch.uint8).cpu().numpy())

    return label


def _find_classes(
    classifier: CamClassifier,
    image: Image,
    recipe: Recipe,
    clock: StageClock,
    device: torch.device,
    *,
    reduced: bool,
) -> tuple[int, ...]:
    with clock.stage(stages.CLASSIFIER), _precision(device, reduced):
        probabilities = class_probabilities(classifier, image, recipe.cam, device)
    return tuple(int(index) for index in np.flatnonzero(probabilities >= CLASS_THRESHOLD))


def _precision(device: torch.device, reduced: bool) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=reduced)
