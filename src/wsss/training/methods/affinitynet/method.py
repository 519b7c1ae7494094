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

from ...engine.run import Stage, no_figures
from ..shared.stages import CAM, SEEDS, SEGMENTER
from ..shared.walk_stage import make_labels, measure_labels
from .train import train_affinity

STAGES = (
    CAM,
    SEEDS,
    Stage("affinity", ("backbone", "affinity"), ("cam", "seeds"), train_affinity, no_figures),
    Stage("labels", ("walk",), ("cam", "affinity"), make_labels, measure_labels),
    SEGMENTER,
)
