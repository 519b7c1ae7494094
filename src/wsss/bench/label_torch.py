"""What `wsss bench label` measures in torch: photographs on the disk, and the ways to label them.

A labeller starts from pixels; reading and writing are the same for all of them and stand in
`bench/label.py`. The dense CRF is left out everywhere, it has a bench of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import ConfigError
from ..training.data.image_set import spread
from ..training.data.readers import read_image_set
from ..training.engine.networks import Network
from ..training.methods.shared.classifier import CamClassifier
from ..training.methods.shared.segmenter_network import Segmenter
from ..training.predict.run_predictor import RunPredictor, Step
from . import stages
from .cam_torch import BFLOAT16, PUBLISHED, TORCH, images_apart
from .machine import has_bfloat16
from .published_pipeline import as_published, published_label
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
    """Return the torch forms of a run by name; the segmenter has no published one."""
    labellers: dict[str, Labeller] = {}
    if way == "walk":
        labellers[PUBLISHED] = _publishing(predictor, device)
    labellers[TORCH] = _predicting(predictor, way, device, reduced=False)
    if has_bfloat16(device):
        fast = RunPredictor(predictor.folder, device.type)
        for stage in fast.stages_of(way):
            # The layout in which bfloat16 convolutions are fast.
            fast.network(stage, Network).backbone.memory_format = torch.channels_last
        labellers[BFLOAT16] = _predicting(fast, way, device, reduced=True)
    return labellers


def _publishing(predictor: RunPredictor, device: torch.device) -> Labeller:
    """Label as the released code does, which is always given the classes.

    Where nobody knows the classes, the predictor finds them.
    """
    recipe, source = predictor.walk_recipe(), predictor.method.affinity
    if source is None or source.kind != "features":
        raise ConfigError(
            f"run '{predictor.folder}' is of method {recipe.method}: this is measured for methods "
            "whose affinities are made of features"
        )
    classifier = as_published(predictor.network("cam", CamClassifier))
    network = as_published(predictor.affinity_network())

    def label(image: Image, classes: Classes, clock: StageClock) -> Image | None:
        found: Sequence[int]
        if classes is None:
            with clock.stage(stages.CLASSIFIER):
                found = predictor.find_classes(image)
        else:
            found = classes
        return published_label(classifier, network, source, recipe, image, found, clock, device)

    return label


def _predicting(
    predictor: RunPredictor, way: str, device: torch.device, *, reduced: bool
) -> Labeller:
    """Label with the predictor, its steps on the clock.

    Args:
        reduced: networks in bfloat16; the walk stays in float32.
    """
    parts: dict[str, Sequence[nn.Module]] = {}
    if way == "walk":
        classifier = predictor.network("cam", CamClassifier)
        parts[stages.CAM_NETWORK] = (classifier.backbone, classifier.classifier)
        parts[stages.AFFINITY_NETWORK] = [predictor.affinity_network()]
    else:
        parts[stages.SEGMENTER] = [predictor.network("segmenter", Segmenter)]

    def label(image: Image, classes: Classes, clock: StageClock) -> Image:
        @contextmanager
        def timer(step: Step) -> Iterator[None]:
            modules = parts.get(step, ())
            with (
                clock.stage(stages.RESIZE_AND_MERGE if modules else step),
                charged(clock, step, modules),
                torch.autocast(
                    device.type, torch.bfloat16, enabled=reduced and step in stages.NETWORKS
                ),
            ):
                yield

        predictor.timer = timer
        return predictor.predict_one(image, classes if way == "walk" else None, way, False).label

    return label
