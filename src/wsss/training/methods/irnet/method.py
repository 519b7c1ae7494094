"""The IRNet method, from image-level labels to instances, in the order of the paper.

Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations",
CVPR 2019. Each stage is a plain function of (run, folder, digest) and may be called alone.

1. cam: a classifier learns the image-level labels; its activation maps show where classes are.
2. seeds: where maps are high or low under two constants, after a dense CRF, labels are taken as
   certain; the rest is undecided.
3. irnet: a network learns boundaries, which part neighbouring cells of unlike labels, and
   displacements, which are alike for the cells of one object.
4. labels: activation maps walk randomly, stopped by boundaries, and become pseudo labels.
5. instances: cells whose displacements meet in one place are an object; its activations walk apart
   from those of others.
6. segmenter: a segmentation network learns the pseudo labels.
"""

from ....runtime.refine.dense_crf import CrfSettings
from ...engine.run import Stage, no_figures
from ..contract import Demo, DemoFigure, Method, Published
from ..sec.train import plain_objective
from ..shared.stages import (
    CAM,
    DEMO_CAM,
    DEMO_LABELS,
    DEMO_SEGMENTER,
    MEASURED_CAM,
    MEASURED_LABELS,
    MEASURED_SEGMENTER,
    SEEDS,
    segmenter_stage,
)
from ..shared.walk_stage import DEMO_WALK, MEASURED_WALK, walk_stage
from . import instances
from .network import SOURCE
from .recipe import IRNetRecipe
from .report import make_sheets
from .train import irnet_network, train_irnet

_PAPER = "Ahn, Cho and Kwak, CVPR 2019"

METHOD = Method(
    name="irnet",
    recipe=IRNetRecipe,
    stages=(
        CAM,
        SEEDS,
        Stage(
            "irnet",
            ("backbone", "irnet"),
            ("cam", "seeds"),
            train_irnet,
            no_figures,
            text="boundaries, and the way to the middle of each object",
            network=irnet_network,
        ),
        walk_stage(SOURCE),
        Stage(
            "instances",
            ("cam", "walk", "instances"),
            ("cam", "irnet"),
            instances.make_instances,
            instances.measure_instances,
            ("cam.threshold", "walk.threshold", "walk.crf"),
            "cells that meet in one place are an object",
        ),
        segmenter_stage("labels", plain_objective),
    ),
    measured=(MEASURED_CAM, MEASURED_WALK, MEASURED_LABELS, MEASURED_SEGMENTER),
    demo=Demo(
        "demo_irnet",
        (
            DEMO_CAM,
            DEMO_WALK,
            DEMO_LABELS,
            DEMO_SEGMENTER,
            DemoFigure("instance_ap50", "instances, training images", "instances", "ap50"),
            DemoFigure(
                "boundary_instance_ap50", "of walked CAMs alone", "instances", "boundary_ap50"
            ),
            DemoFigure("cam_instance_ap50", "of CAMs alone", "instances", "cam_ap50"),
        ),
        scenes="touching",
    ),
    affinity=SOURCE,
    instances=instances.SOURCE,
    label_threshold=lambda recipe: float(recipe.walk.threshold),
    sheets=make_sheets,
    published={
        ("resnet50", "cam"): Published(48.3, _PAPER),
        ("resnet50", "walk"): Published(66.5, _PAPER),
        ("resnet50", "labels"): Published(66.5, f"{_PAPER}; without CRF"),
        ("resnet50", "segmenter"): Published(63.5, f"{_PAPER}; DeepLab v2"),
    },
    seed_crf=CrfSettings(10, 3, 3, 50, 5, 10),
)
