"""The self-guided network, from image-level labels to a segmenter, in the order of its abstract.

Ke and others, "Generating Self-Guided Dense Annotations for Weakly Supervised Semantic
Segmentation", arXiv, October 2018. Only the abstract was at hand: this is a design after it, not a
reproduction, and no figure of the paper is known to us. Each stage is a plain function of (run,
folder, digest) and may be called alone.

1. cam: a classifier learns the image-level labels.
2. segmenter: one network with the classifier's head and one for labels. Before each epoch it makes
   the labels that it learns in this epoch (`train.refined_maps`):

   step 1: its high-level features are class-specific maps of where things are;
   step 2: each map walks to cells that are alike in intermediate features;
   step 3: the image itself guides a filter that carries its structure into the maps.
3. labels: the same three steps by the final network, for all training images; each is measured.
"""

from ...engine.run import Stage
from ..contract import Demo, DemoFigure, Measured, Method
from ..shared.segmenter_stage import measure_segmenter
from ..shared.stages import (
    CAM,
    DEMO_CAM,
    DEMO_LABELS,
    DEMO_SEGMENTER,
    MEASURED_CAM,
    MEASURED_LABELS,
    MEASURED_SEGMENTER,
    SEGMENTER_FIGURES,
)
from .recipe import SelfGuidedRecipe
from .report import make_sheets
from .train import (
    STEPS,
    make_self_guided_labels,
    measure_steps,
    self_guided_network,
    train_self_guided,
)


def _threshold(recipe: SelfGuidedRecipe) -> float:
    return recipe.selfguided.threshold


METHOD = Method(
    name="selfguided",
    recipe=SelfGuidedRecipe,
    stages=(
        CAM,
        Stage(
            "segmenter",
            ("backbone", "seeds", "segmenter", "selfguided"),
            ("cam",),
            train_self_guided,
            measure_segmenter,
            (*SEGMENTER_FIGURES, "selfguided.threshold"),
            "one network, learns labels that it makes anew before each epoch",
            self_guided_network,
        ),
        Stage(
            "labels",
            ("selfguided",),
            ("segmenter",),
            make_self_guided_labels,
            measure_steps,
            text="its final labels, measured step by step",
        ),
    ),
    measured=(
        MEASURED_CAM,
        *(
            Measured(step, f"step {n}", "labels", f"labels/{step}", f"{step}_miou", _threshold)
            for n, step in enumerate(STEPS, 1)
        ),
        MEASURED_LABELS,
        MEASURED_SEGMENTER,
    ),
    demo=Demo(
        "demo_selfguided",
        (
            DEMO_CAM,
            DemoFigure(
                "step_mious",
                "steps, each at its best threshold",
                "labels",
                tuple(f"{step}_best_miou" for step in STEPS),
            ),
            DEMO_LABELS,
            DEMO_SEGMENTER,
        ),
    ),
    label_threshold=_threshold,
    sheets=make_sheets,
    has_label_column=False,
    figure_names={
        "step1_miou": "mIoU % of step 1, CAMs",
        "step2_miou": "mIoU % of step 2, walked",
        "step3_miou": "mIoU % of step 3, guided",
        **{
            f"{step}_best_miou": f"step {n} at its best threshold"
            for n, step in enumerate(STEPS, 1)
        },
    },
)
