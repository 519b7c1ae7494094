"""Stages that the methods have in common, in front of what is special to each and behind it."""

from .run import Stage
from .stages.cam import make_cams, measure_cams
from .stages.seeds import make_seeds, measure_seeds
from .stages.segmenter import measure_segmenter, train_segmenter

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
SEGMENTER = Stage(
    "segmenter",
    ("backbone", "segmenter"),
    ("cam", "labels"),
    train_segmenter,
    measure_segmenter,
    SEGMENTER_FIGURES,
)
