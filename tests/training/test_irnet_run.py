"""IRNet end to end: what its run leaves, what it refuses, and that a killed one goes on."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import METHODS, TRAIN_NAMES, assert_same_run, errors_of, start_training, tiny_recipe

from wsss.errors import ConfigError
from wsss.runtime.instances.files import CLASSES, OBJECTS, read_ids
from wsss.runtime.io.image_io import read_image, read_label_map
from wsss.runtime.io.score_maps import load_score_maps
from wsss.training.data.image_set import ImageSet
from wsss.training.engine.checkpoint import load_checkpoint
from wsss.training.engine.metrics import read_metrics
from wsss.training.engine.run import read_stage
from wsss.training.methods.irnet.method import STAGES
from wsss.training.methods.shared.pair_losses import DISPLACEMENT_NAMES, PAIR_NAMES
from wsss.training.pipeline import TrainResult, train
from wsss.training.predict.run_predictor import RunPredictor

NETWORKS = METHODS["irnet"][1]
EPOCHS = tuple(f"{stage}.train.epochs=5" for stage in NETWORKS)


def _train(images: ImageSet, out: Path, *overrides: str, **options: object) -> TrainResult:
    recipe = tiny_recipe(*overrides, method="irnet")
    return train(recipe, images, out, device="cpu", **options)  # type: ignore[arg-type]


def test_every_stage_leaves_its_record_and_its_files(
    finished_irnet_run: Path, tiny_images: ImageSet
) -> None:
    for stage in STAGES:
        record = read_stage(finished_irnet_run / stage.name)
        assert record["stage"] == stage.name
        assert set(record["inputs"]) == {"images", *stage.needs}
        weights = finished_irnet_run / stage.name / "weights.safetensors"
        assert weights.is_file() == (stage.name in NETWORKS)
    figures = read_stage(finished_irnet_run / "labels")["figures"]
    assert figures.keys() == {"walk_miou", "walk_images", "miou", "images"}
    for sample in tiny_images.select("train").samples:
        size = read_image(sample.image_path).shape[:2]
        allowed = {0, *(label + 1 for label in sample.labels or ())}
        maps = load_score_maps(finished_irnet_run / "labels" / "scores" / f"{sample.name}.npz")
        assert maps.background is None and tuple(maps.classes) == sample.labels
        label_map = read_label_map(finished_irnet_run / "labels" / f"{sample.name}.png")
        folder = finished_irnet_run / "instances"
        ids = read_ids(folder / OBJECTS / f"{sample.name}.png").ids
        classes = read_label_map(folder / CLASSES / f"{sample.name}.png")
        assert label_map.shape == ids.shape == classes.shape == size
        assert set(np.unique(label_map)) | set(np.unique(classes)) <= allowed
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


def test_a_run_labels_images_as_its_stages_did(
    finished_irnet_run: Path, tiny_images: ImageSet
) -> None:
    predictor = RunPredictor(finished_irnet_run, "cpu")
    for sample in tiny_images.select("train").samples:
        found = predictor.recipe_label(read_image(sample.image_path), sample.labels, "labels")
        stored = read_label_map(finished_irnet_run / "labels" / f"{sample.name}.png")
        assert (found == stored).mean() > 0.99  # stored CAMs are rounded to float16


def test_without_displacements_there_are_labels_and_no_instances(
    tiny_images: ImageSet, tmp_path: Path
) -> None:
    stages = ["cam", "seeds", "irnet", "labels", "instances"]
    _train(tiny_images, tmp_path / "run", "irnet.displacement=false", stages=stages)
    row = read_metrics(tmp_path / "run" / "irnet" / "metrics.jsonl")[-1]
    assert not set(DISPLACEMENT_NAMES) & set(row)
    assert {path.stem for path in (tmp_path / "run/labels").glob("*.png")} == set(TRAIN_NAMES)
    assert not list((tmp_path / "run/instances").rglob("*.png"))


def test_cams_of_another_method_need_a_backbone_of_weights(
    tiny_images: ImageSet, tmp_path: Path
) -> None:
    cams = tmp_path / "cams"
    cams.mkdir()
    for name in TRAIN_NAMES:
        np.savez(cams / f"{name}.npz", cam=np.ones((1, 3, 4), np.float32), keys=[0])
    with pytest.raises(ConfigError, match=r"irnet\.start is 'classifier', but `cams_path` leaves"):
        _train(tiny_images, tmp_path / "run", cams_path=cams)


@pytest.fixture(scope="module")
def straight(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, in a process like those that are killed."""
    out = tmp_path_factory.mktemp("straight_irnet") / "run"
    _run_to_the_end(tiny_data, out)
    return out


def _run_to_the_end(data: Path, out: Path) -> None:
    process = start_training(data, out, EPOCHS, method="irnet", save_every_step=True)
    process.join()
    assert process.exitcode == 0, errors_of(out)


@pytest.mark.parametrize(
    ("below", "at", "missing"),
    [
        ("irnet", 5, "weights.safetensors"),  # the third resume file, not yet in place
        ("irnet", 14, "stage.json"),  # between the weights and the end
        ("instances/SegmentationObject", 4, "SegmentationObject/train_3.png"),
    ],
)
def test_a_killed_run_ends_in_the_same_bits(
    tiny_data: Path, straight: Path, tmp_path: Path, below: str, at: int, missing: str
) -> None:
    out = tmp_path / "run"
    options = {"save_every_step": True, "kill_at": at, "kill_below": below}
    process = start_training(tiny_data, out, EPOCHS, method="irnet", **options)
    process.join()
    assert process.exitcode == -signal.SIGKILL, errors_of(out)
    stage = below.split("/")[0]
    assert (out / stage).is_dir() and not (out / stage / missing).exists()
    _run_to_the_end(tiny_data, out)
    assert_same_run(straight, out)
