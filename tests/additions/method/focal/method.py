"""CAMs by the focal loss, from image-level labels to a segmenter.

1. cam: a classifier learns the image-level labels by the focal loss, which counts what it
   recognises already less; its activation maps show where classes are.
2. seeds: where maps are high or low, labels are taken as certain.
3. segmenter: a segmentation network learns the seeds.
"""

from torch import Tensor
from torch.nn import functional

from ..contract import Demo, Method
from ..shared.cam_stage import ClassLoss
from ..shared.stages import (
    DEMO_CAM,
    DEMO_SEEDS,
    DEMO_SEGMENTER,
    MEASURED_CAM,
    MEASURED_SEGMENTER,
    SEEDS,
    cam_stage,
    segmenter_stage,
)
from .recipe import FocalRecipe


def focal_loss(recipe: FocalRecipe) -> ClassLoss:
    """(1 - p) ** gamma times the cross entropy, p the probability of what is right."""
    gamma = recipe.focal.gamma

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return ((1 - (-each).exp()) ** gamma * each).mean()

    return loss


METHOD = Method(
    name="focal",
    recipe=FocalRecipe,
    stages=(cam_stage(focal_loss, ("focal",)), SEEDS, segmenter_stage("seeds")),
    measured=(MEASURED_CAM, MEASURED_SEGMENTER),
    demo=Demo("demo_focal", (DEMO_CAM, DEMO_SEEDS, DEMO_SEGMENTER)),
    has_label_column=False,
)
