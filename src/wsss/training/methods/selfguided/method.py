"""The self-guided network, from image-level labels to a segmenter, in the order of its abstract.

Ke and others, "Generating Self-Guided Dense Annotations for Weakly Supervised Semantic
Segmentation", arXiv, October 2018. Only the abstract was at hand: this is a design after it, not a
reproduction, and no figure of the paper is known to us. Each stage is a plain function of (run,
folder, digest) and may be called alone.

1. cam: a classifier learns the image-level labels.
2. segmenter: one network with the classifier's head and one for labels. Before each epoch it makes
   the labels that it learns in this epoch (`stages.selfguided.refined_maps`):

   step 1: its high-level features are class-specific maps of where things are;
   step 2: each map walks to cells that are alike in intermediate features;
   step 3: the image itself guides a filter that carries its structure into the maps.
3. labels: the same three steps by the final network, for all training images; each is measured.
"""

from ...engine.run import Stage
from ..shared.segmenter_stage import measure_segmenter
from ..shared.stages import CAM, SEGMENTER_FIGURES
from .train import make_self_guided_labels, measure_steps, train_self_guided

STAGES = (
    CAM,
    Stage(
        "segmenter",
        ("backbone", "seeds", "segmenter", "selfguided"),
        ("cam",),
        train_self_guided,
        measure_segmenter,
        (*SEGMENTER_FIGURES, "selfguided.threshold"),
    ),
    Stage("labels", ("selfguided",), ("segmenter",), make_self_guided_labels, measure_steps),
)
