"""Stages that the methods have in common, in front of what is special to each and behind it."""

from functools import partial

from ...engine.run import Stage
from .cam_stage import make_cams, measure_cams
from .seed_stage import make_seeds, measure_seeds
from .segmenter_stage import measure_segmenter, train_segmenter

CAM = Stage(
    "cam",
    ("backbone", "data", "cam"),
    (),
    make_cams,
    measure_cams,
    ("cam.threshold", "data.val_split", "data.figures_split"),
)
SEEDS = Stage("seeds", ("seeds",), ("cam",), make_seeds, measure_seeds)
SEGMENTER_FIGURES = ("segmenter.scales", "segmenter.flip", "segmenter.crf")
"""Settings of a segmenter that its training does not depend on."""


def segmenter_stage(labels: str) -> Stage:
    """The segmenter that learns the label maps of a stage."""
    return Stage(
        "segmenter",
        ("backbone", "segmenter"),
        ("cam", labels),
        partial(train_segmenter, labels=labels),
        measure_segmenter,
        SEGMENTER_FIGURES,
    )


SEGMENTER = segmenter_stage("labels")
