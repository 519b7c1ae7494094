"""Stages and figures that methods have in common."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ...engine.run import Stage
from ..contract import DemoFigure, Measured
from .cam_stage import ClassLoss, cam_network, make_cams, measure_cams, usual_loss
from .seed_stage import make_seeds, measure_seeds
from .segmenter_stage import (
    MakeObjective,
    measure_segmenter,
    segmentation_objective,
    segmenter_network,
    train_segmenter,
)


def cam_stage(
    make_loss: Callable[[Any], ClassLoss] = usual_loss, settings: tuple[str, ...] = ()
) -> Stage:
    """The classifier and its activation maps.

    Args:
        make_loss: gives the classifier's loss for a recipe.
        settings: sections of the recipe that the loss takes values from.
    """
    return Stage(
        "cam",
        ("backbone", "data", "cam", *settings),
        (),
        partial(make_cams, make_loss=make_loss),
        measure_cams,
        ("cam.threshold", "data.val_split", "data.figures_split"),
        "classifier and its activation maps",
        cam_network,
    )


CAM = cam_stage()
SEEDS = Stage(
    "seeds", ("seeds",), ("cam",), make_seeds, measure_seeds, text="labels taken as certain"
)
SEGMENTER_FIGURES = ("segmenter.scales", "segmenter.flip", "segmenter.crf")
"""Settings of a segmenter that its training does not depend on."""


def segmenter_stage(
    labels: str,
    make_objective: MakeObjective = segmentation_objective,
    text: str = "trained on the pseudo labels",
) -> Stage:
    """The segmenter that learns the label maps of a stage."""
    return Stage(
        "segmenter",
        ("backbone", "segmenter"),
        ("cam", labels),
        partial(train_segmenter, labels=labels, make_objective=make_objective),
        measure_segmenter,
        SEGMENTER_FIGURES,
        text,
        segmenter_network,
    )


MEASURED_CAM = Measured(
    "cam", "CAM", "cam", "cam", threshold=lambda recipe: float(recipe.cam.threshold)
)
MEASURED_LABELS = Measured("labels", "pseudo labels", "labels", "labels")
MEASURED_SEGMENTER = Measured("segmenter", "segmenter", "segmenter")

DEMO_CAM = DemoFigure("cam_miou", "CAM, training images", "cam")
DEMO_SEEDS = DemoFigure("seed_miou", "what seeds decide", "seeds")
DEMO_LABELS = DemoFigure("label_miou", "pseudo labels", "labels")
DEMO_SEGMENTER = DemoFigure("segmenter_miou", "segmenter, validation images", "segmenter")
