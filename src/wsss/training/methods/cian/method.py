"""The CIAN method, from image-level labels to a segmenter, in the order of the paper.

Fan, Zhang, Tan, Song and Xiao, "CIAN: Cross-Image Affinity Net for Weakly Supervised Semantic
Segmentation", AAAI 2020. Each stage is a plain function of (run, folder, digest) and may be called
alone.

1. cam: a classifier learns the image-level labels; its activation maps show where classes are.
2. seeds: where these are high or low, labels are taken as certain; the rest is undecided. The paper
   has the background from a saliency model, which is supervision of another kind and not here.
3. cian: a segmenter learns the seeds. In training it looks at pairs of images that share a class,
   whose cells complete each other; alone, an image looks at itself.
4. labels: what this segmenter says of the training images.
5. segmenter: it goes on learning, on these labels.
"""

from ....runtime.refine.dense_crf import CrfSettings
from ...engine.run import Stage
from ..contract import Demo, DemoFigure, Measured, Method, Published
from ..shared.segmenter_stage import measure_segmenter
from ..shared.stages import (
    CAM,
    DEMO_CAM,
    DEMO_LABELS,
    DEMO_SEGMENTER,
    MEASURED_CAM,
    MEASURED_LABELS,
    MEASURED_SEGMENTER,
    SEEDS,
    SEGMENTER_FIGURES,
)
from .recipe import CianRecipe
from .train import (
    first_network,
    make_cian_labels,
    measure_cian,
    measure_cian_labels,
    second_network,
    train_cian,
    train_cian_segmenter,
)

METHOD = Method(
    name="cian",
    recipe=CianRecipe,
    stages=(
        CAM,
        SEEDS,
        Stage(
            "cian",
            ("backbone", "cian"),
            ("cam", "seeds"),
            train_cian,
            measure_cian,
            ("cian.scales", "cian.flip", "cian.crf"),
            "segmenter of images that share a class, trained on the seeds",
            first_network,
        ),
        Stage(
            "labels",
            ("cian", "labels"),
            ("cian",),
            make_cian_labels,
            measure_cian_labels,
            text="pseudo labels of the training images",
        ),
        Stage(
            "segmenter",
            ("backbone", "segmenter"),
            ("cian", "labels"),
            train_cian_segmenter,
            measure_segmenter,
            SEGMENTER_FIGURES,
            "trained on the pseudo labels",
            second_network,
        ),
    ),
    measured=(
        MEASURED_CAM,
        Measured("cian", "cian", "cian", section=lambda recipe: recipe.cian),
        MEASURED_LABELS,
        MEASURED_SEGMENTER,
    ),
    demo=Demo(
        "demo_cian",
        (
            DEMO_CAM,
            DemoFigure("first_round_miou", "first round, validation images", "cian"),
            DEMO_LABELS,
            DEMO_SEGMENTER,
        ),
    ),
    published={
        ("resnet101", "segmenter"): Published(
            64.3, "Fan and others, AAAI 2020; seeds with a saliency model"
        ),
    },
    seed_crf=CrfSettings(5, 3, 3, 80, 13, 10),
)
