"""IRNet end to end: what its run leaves, what it refuses, and that a killed one goes on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from method_contract import SGD, MethodContract
from tiny_run import METHODS, TRAIN_NAMES, tiny_recipe

from wsss.runtime.instances.files import CLASSES, OBJECTS, read_ids
from wsss.runtime.io.image_io import read_image, read_label_map
from wsss.runtime.io.score_maps import load_score_maps
from wsss.training.data.image_set import ImageSet
from wsss.training.engine.checkpoint import load_checkpoint
from wsss.training.engine.metrics import read_metrics
from wsss.training.engine.run import read_stage
from wsss.training.methods.shared.pair_losses import DISPLACEMENT_NAMES, PAIR_NAMES
from wsss.training.pipeline import TrainResult, train

NETWORKS = METHODS["irnet"][1]
OBJECTS_DIR = f"instances/{OBJECTS}"


def _train(images: ImageSet, out: Path, *overrides: str, **options: object) -> TrainResult:
    recipe = tiny_recipe(*overrides, method="irnet")
    return train(recipe, images, out, device="cpu", **options)  # type: ignore[arg-type]


class TestIrnet(MethodContract):
    method = "irnet"
    has_walk = True
    cams_refused = r"irnet\.start is 'classifier', but `cams_path` leaves"
    refused = (("irnet.radius=0", r"irnet\.radius is 0, must be"),)
    epochs = tuple(f"{stage}.train.epochs=5" for stage in NETWORKS)
    kills = (
        # The third resume file, not yet in place.
        ("irnet", 5, "irnet", "irnet/weights.safetensors"),
        ("irnet", 14, "irnet/weights.safetensors", "irnet/stage.json"),
        (OBJECTS_DIR, 4, OBJECTS_DIR, f"{OBJECTS_DIR}/train_3.png"),
    )
    shared = tuple(f"{stage}.train.{text}" for stage in NETWORKS[1:] for text in SGD)
    groups = (NETWORKS[1:],)


def test_every_image_gets_maps_and_instances(
    finished_irnet_run: Path, tiny_images: ImageSet
) -> None:
    figures = read_stage(finished_irnet_run / "labels")["figures"]
    assert figures.keys() == {"walk_miou", "walk_images", "miou", "images"}
    for sample in tiny_images.select("train").samples:
        size = read_image(sample.image_path).shape[:2]
        maps = load_score_maps(finished_irnet_run / "labels" / "scores" / f"{sample.name}.npz")
        assert maps.background is None and tuple(maps.classes) == sample.labels
        folder = finished_irnet_run / "instances"
        ids = read_ids(folder / OBJECTS / f"{sample.name}.png").ids
        classes = read_label_map(folder / CLASSES / f"{sample.name}.png")
        assert ids.shape == classes.shape == size
        assert set(np.unique(classes)) <= {0, *(label + 1 for label in sample.labels or ())}
        assert np.array_equal(ids == 0, classes == 0)


def test_metrics_name_all_terms_of_the_loss(finished_irnet_run: Path) -> None:
    rows = read_metrics(finished_irnet_run / "irnet" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        pairs = sum(w * row[n] for w, n in zip((0.25, 0.25, 0.5), PAIR_NAMES, strict=True))
        errors = sum(row[name] for name in DISPLACEMENT_NAMES) / 2
        assert row["loss"] == pytest.approx(pairs + errors, rel=1e-3)


def test_the_backbone_stays_that_of_the_classifier(finished_irnet_run: Path) -> None:
    (cam, _), (irnet, header) = (
        load_checkpoint(finished_irnet_run / stage / "weights.safetensors")
        for stage in ("cam", "irnet")
    )
    frozen = {name for name in irnet if name.startswith("backbone.")}
    assert frozen == {name for name in cam if name.startswith("backbone.")}
    assert all(torch.equal(irnet[name], cam[name]) for name in frozen)
    assert header["method"] == "irnet" and bool(irnet["mean_displacement"].any())


def test_without_displacements_there_are_labels_and_no_instances(
    tiny_images: ImageSet, tmp_path: Path
) -> None:
    stages = ["cam", "seeds", "irnet", "labels", "instances"]
    _train(tiny_images, tmp_path / "run", "irnet.displacement=false", stages=stages)
    row = read_metrics(tmp_path / "run" / "irnet" / "metrics.jsonl")[-1]
    assert not set(DISPLACEMENT_NAMES) & set(row)
    assert {path.stem for path in (tmp_path / "run/labels").glob("*.png")} == set(TRAIN_NAMES)
    assert not list((tmp_path / "run/instances").rglob("*.png"))
