"""AffinityNet end to end; what all runs have in common is in `test_pipeline.py`."""

from pathlib import Path

from method_contract import MethodContract
from tiny_run import NETWORKS

from wsss.training.engine.run import read_stage

SGD = ("optimizer=sgd", "learning_rate=0.05", "momentum=0.5", "new_layer_factor=2")


class TestAffinityNet(MethodContract):
    method = "affinitynet"
    has_walk = True
    cams_refused = r"affinity\.start is 'classifier', but `cams_path` leaves"
    refused = (("affinity.radius=0", r"affinity\.radius is 0, must be"),)
    epochs = tuple(f"{stage}.train.epochs=5" for stage in NETWORKS)
    kills = (
        # Of the changes in a stage's folder the fifth is the third resume file, not yet in place.
        *((stage, 5, stage, f"{stage}/weights.safetensors") for stage in NETWORKS),
        # After `unfinished`, metrics, ten resume files and the weights, the resume file goes.
        *((stage, 14, f"{stage}/weights.safetensors", f"{stage}/stage.json") for stage in NETWORKS),
        ("labels/scores/", 5, "labels/scores/train_3.npz", "labels/scores/train_4.npz"),
    )
    shared = (
        *(f"{stage}.train.{setting}" for stage in NETWORKS for setting in SGD),
        "affinity.train.learning_rate=0.02",
        "affinity.start=weights",
        "segmenter.start=weights",
    )
    groups = (NETWORKS,)

    def test_figures(self, finished: Path) -> None:
        figures = read_stage(finished / "labels")["figures"]
        assert figures.keys() == {"walk_miou", "walk_images", "miou", "images"}
