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

from ...engine.run import Stage, no_figures
from ..shared.stages import CAM, SEEDS, SEGMENTER
from ..shared.walk_stage import make_labels, measure_labels
from .instances import make_instances, measure_instances
from .train import train_irnet

STAGES = (
    CAM,
    SEEDS,
    Stage("irnet", ("backbone", "irnet"), ("cam", "seeds"), train_irnet, no_figures),
    Stage("labels", ("walk",), ("cam", "irnet"), make_labels, measure_labels),
    Stage(
        "instances",
        ("cam", "walk", "instances"),
        ("cam", "irnet"),
        make_instances,
        measure_instances,
        ("cam.threshold", "walk.threshold", "walk.crf"),
    ),
    SEGMENTER,
)
