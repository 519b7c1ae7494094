"""The AffinityNet method, from image-level labels to a segmenter, in the order of the paper.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly
Supervised Semantic Segmentation", CVPR 2018. Each stage is a plain function of (run, folder,
digest) and may be called alone.

1. cam: a classifier learns the image-level labels; its activation maps show where classes are.
2. seeds: where maps are high or low under two background scores, after a dense CRF, labels are
   taken as certain; the rest is undecided.
3. affinity: a network learns features that are alike for neighbouring cells of one label.
4. labels: activation maps walk randomly along these affinities and become pseudo labels.
5. segmenter: a segmentation network learns the pseudo labels.
"""

from ....runtime.refine.dense_crf import CrfSettings
from ...engine.run import Stage, no_figures
from ..contract import Demo, Method, Published
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
from .network import SOURCE
from .recipe import AffinityNetRecipe
from .train import affinity_network, train_affinity

_CODE = "readme of the released code"
_PAPER = "Ahn and Kwak, CVPR 2018"

METHOD = Method(
    name="affinitynet",
    recipe=AffinityNetRecipe,
    stages=(
        CAM,
        SEEDS,
        Stage(
            "affinity",
            ("backbone", "affinity"),
            ("cam", "seeds"),
            train_affinity,
            no_figures,
            text="which neighbours are alike",
            network=affinity_network,
        ),
        walk_stage(SOURCE),
        segmenter_stage("labels", plain_objective),
    ),
    measured=(MEASURED_CAM, MEASURED_WALK, MEASURED_LABELS, MEASURED_SEGMENTER),
    demo=Demo("demo", (DEMO_CAM, DEMO_WALK, DEMO_LABELS, DEMO_SEGMENTER)),
    affinity=SOURCE,
    label_threshold=lambda recipe: float(recipe.walk.threshold),
    # The paper has other CAMs (48.0) and another alpha (58.1); the walk stands beside the CAMs that
    # it started from.
    published={
        ("resnet38", "cam"): Published(47.7, _CODE),
        ("resnet38", "walk"): Published(61.0, _CODE),
        ("resnet38", "segmenter"): Published(61.7, _PAPER),
        ("vgg16", "cam"): Published(48.9, _CODE),
        ("vgg16", "walk"): Published(59.6, _CODE),
        ("vgg16", "segmenter"): Published(58.4, _PAPER),
    },
    seed_crf=CrfSettings(10, 3, 3, 80, 13, 10),
)
