"""SEC, from image-level labels to a segmenter, in the order of the paper.

Kolesnikov and Lampert, "Seed, Expand and Constrain: Three Principles for Weakly-Supervised Image
Segmentation", ECCV 2016. Each stage is a plain function of (run, folder, digest) and may be called
alone.

1. cam: a classifier learns the image-level labels; its activation maps show where classes are.
2. seeds: where maps are high or low, labels are taken as certain; the rest is undecided.
3. segmenter: a segmentation network agrees with the seeds, gives each class in the image a share of
   it and others none, and agrees with its own dense CRF. With `segmenter.loss = "cross_entropy"`
   it learns the seeds alone.
"""

from ..contract import Demo, Method, Published
from ..shared.stages import (
    CAM,
    DEMO_CAM,
    DEMO_SEEDS,
    DEMO_SEGMENTER,
    MEASURED_CAM,
    MEASURED_SEGMENTER,
    SEEDS,
    segmenter_stage,
)
from .recipe import SecRecipe
from .train import plain_objective

METHOD = Method(
    name="sec",
    recipe=SecRecipe,
    stages=(
        CAM,
        SEEDS,
        segmenter_stage("seeds", plain_objective, "agrees with seeds, classes and boundaries"),
    ),
    measured=(MEASURED_CAM, MEASURED_SEGMENTER),
    demo=Demo("demo_sec", (DEMO_CAM, DEMO_SEEDS, DEMO_SEGMENTER)),
    has_label_column=False,
    published={
        ("vgg16", "segmenter"): Published(
            50.7, "Kolesnikov and Lampert, ECCV 2016, as Ahn and Kwak print it"
        ),
    },
)
