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

from ..shared.stages import CAM, SEEDS, segmenter_stage

STAGES = (CAM, SEEDS, segmenter_stage("seeds"))
