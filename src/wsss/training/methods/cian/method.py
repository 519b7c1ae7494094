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

from ...engine.run import Stage
from ..shared.segmenter_stage import measure_segmenter
from ..shared.stages import CAM, SEEDS, SEGMENTER_FIGURES
from .train import (
    make_cian_labels,
    measure_cian,
    measure_cian_labels,
    train_cian,
    train_cian_segmenter,
)

STAGES = (
    CAM,
    SEEDS,
    Stage(
        "cian",
        ("backbone", "cian"),
        ("cam", "seeds"),
        train_cian,
        measure_cian,
        ("cian.scales", "cian.flip", "cian.crf"),
    ),
    Stage("labels", ("cian", "labels"), ("cian",), make_cian_labels, measure_cian_labels),
    Stage(
        "segmenter",
        ("backbone", "segmenter"),
        ("cian", "labels"),
        train_cian_segmenter,
        measure_segmenter,
        SEGMENTER_FIGURES,
    ),
)
