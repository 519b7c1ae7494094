"""What torch computes for each graph, image by image, through the code that training uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...runtime.bundle.inputs import image_input, present_input
from ...runtime.refine.cam import normalise_cam
from ...runtime.refine.pseudo_labels import label_from_stack, score_stack, walk_change, walk_scores
from ...training.methods.shared.classifier import (
    CamClassifier,
    class_probabilities,
    image_activation,
)
from ...training.methods.shared.segmenter_network import Segmenter, segment_logits
from ..graphs.graph_io import AFFINITY_OUTPUTS
from ..source import ExportSource

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ParityCase:
    """A batch of images of one size.

    Attributes:
        images: (B, H, W, 3) uint8 RGB.
        classes: of each image; None leaves them to the classifier.
    """

    images: NDArray[np.uint8]
    classes: tuple[tuple[int, ...], ...] | None = None


def reference_outputs(source: ExportSource, case: ParityCase) -> dict[str, Arrays]:
    """Outputs of every exported graph, by graph and name.

    `peaks` (B, C) of `cam` are the greatest activations, which the graph divides by.
    """
    rows = [_image_outputs(source, case, index) for index in range(len(case.images))]
    return {
        name: {key: np.stack([row[name][key] for row in rows]) for key in rows[0][name]}
        for name in rows[0]
    }


@torch.no_grad()
def _image_outputs(source: ExportSource, case: ParityCase, index: int) -> dict[str, Arrays]:
    image = case.images[index]
    outputs: dict[str, Arrays] = {}
    if "cam" in source.networks:
        outputs["cam"] = _cam(source, image)
    stage = source.settings.affinity_stage
    if stage in source.networks:
        maps = source.predictor.affinity_maps(image)
        outputs[stage] = {name: each[0].numpy() for name, each in maps.items()}
    if "cam" in source.networks and stage in source.networks:
        classes = case.classes[index] if case.classes else source.predictor.find_classes(image)
        outputs["label"] = outputs["refine"] = _refined(source, image, classes)
    if "segmenter" in source.networks:
        outputs["segmenter"] = _segmented(source, image)
    return outputs


def _cam(source: ExportSource, image: NDArray[np.uint8]) -> Arrays:
    predictor, section = source.predictor, source.recipe.cam
    network = predictor.network("cam", CamClassifier)
    activation = image_activation(network, image, section, predictor.device)
    everything = range(source.settings.num_classes)
    return {
        "cam": normalise_cam(activation, everything, (image.shape[0], image.shape[1])).scores,
        "peaks": activation.amax(dim=(1, 2)).numpy(),
        "probabilities": class_probabilities(network, image, section, predictor.device),
    }


def _refined(source: ExportSource, image: NDArray[np.uint8], classes: Sequence[int]) -> Arrays:
    """Label, confidence, and the scores of all classes on the grid of the walk."""
    predictor, settings = source.predictor, source.settings
    # Where nothing is, a map of zeros stands in, so that the background has something to beat.
    maps = predictor.score_maps(image, classes or (0,), "cam")
    if not classes:
        maps = replace(maps, scores=np.zeros_like(maps.scores))
    affinity, damping = predictor.affinities(image)
    walked = walk_scores(maps, affinity, settings.walk, damping)
    scores = np.zeros((settings.num_classes + 1, *affinity.shape[-2:]), np.float32)
    scores[walked.classes + 1] = walked.scores
    scores[0] = settings.walk.threshold if walked.background is None else walked.background
    stack = score_stack(walked, settings.walk.threshold, settings.align)
    used = np.zeros(settings.num_classes, np.float32)
    used[list(classes)] = 1
    return {
        "label": label_from_stack(stack, walked.classes),
        "confidence": (stack.amax(0) / stack.sum(0).clamp(min=1e-6)).numpy(),
        "scores": scores,
        "used_classes": used,
        "change": np.asarray([walk_change(maps, walked, settings.walk)], np.float32),
    }


def _segmented(source: ExportSource, image: NDArray[np.uint8]) -> Arrays:
    predictor = source.predictor
    network = predictor.network("segmenter", Segmenter)
    section, align = source.recipe.segmenter, source.recipe.cam.align
    logits = segment_logits(network, image, section, align, predictor.device)
    shares = logits.softmax(0)
    return {
        "label": logits.argmax(0).to(torch.uint8).numpy(),
        "confidence": shares.amax(0).numpy(),
        "scores": shares.numpy(),
    }


def feeds(
    source: ExportSource, case: ParityCase, graph: str, outputs: Mapping[str, Arrays]
) -> Arrays:
    """Inputs of a graph; those of `refine` are torch's own results."""
    settings = source.settings
    inputs: Arrays = {"image": image_input(case.images, settings.layout)}
    if graph == "refine":
        inputs["cam"] = outputs["cam"]["cam"]
        inputs["probabilities"] = outputs["cam"]["probabilities"]
        stage = settings.affinity_stage
        output = AFFINITY_OUTPUTS[settings.affinity_kind]
        inputs[output] = outputs[stage][output]
    if graph in ("refine", "label") and case.classes is not None:
        inputs["present"] = present_input(case.classes, settings.num_classes)
    return inputs
