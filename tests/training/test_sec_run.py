"""SEC end to end: what its run leaves, that each loss can be switched, and two processes."""

from pathlib import Path

import pytest
import torch
from method_contract import SGD, MethodContract
from tiny_run import copy_run, tiny_recipe

from wsss.errors import ConfigError
from wsss.runtime.io.image_io import read_image
from wsss.training.data.image_set import ImageSet
from wsss.training.engine.checkpoint import load_checkpoint
from wsss.training.engine.metrics import read_metrics
from wsss.training.engine.run import read_stage
from wsss.training.methods.sec.train import TERMS
from wsss.training.pipeline import train
from wsss.training.predict.run_predictor import RunPredictor
from wsss.training.recipes import load_recipe


class TestSec(MethodContract):
    method = "sec"
    cams_refused = r"untrained: leave it out, or set segmenter\.start=weights"
    refused = (
        (
            "segmenter.sec.seed=0 segmenter.sec.expand=0 segmenter.sec.constrain=0",
            "are all 0, one must be above",
        ),
        ("segmenter.sec.crf.iterations=0", r"`constrain` is 1, but `crf\.iterations` is 0"),
        (
            "segmenter.sec.object_decay=1",
            r"segmenter\.sec\.object_decay is 1, must be less than 1",
        ),
    )
    epochs = ("cam.train.epochs=2", "segmenter.train.epochs=5")
    kills = (("segmenter", 5, "segmenter", "segmenter/weights.safetensors"),)
    shared = tuple(f"segmenter.train.{text}" for text in SGD)
    groups = (("segmenter",),)
    absolute = 1e-4


def _segmenter(images: ImageSet, finished: Path, out: Path, *overrides: str) -> Path:
    """The segmenter of a run that differs from the finished one in this stage alone."""
    copy_run(finished, out, without=["segmenter"])
    recipe = tiny_recipe(*overrides, method="sec")
    train(recipe, images, out, stages=["segmenter"], device="cpu")
    return out


def test_the_loss_is_the_sum_of_its_terms(finished_sec_run: Path) -> None:
    rows = read_metrics(finished_sec_run / "segmenter" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert all(row[name] > 0 for name in TERMS)
        assert row["loss"] == pytest.approx(sum(row[name] for name in TERMS), rel=1e-5)


@pytest.mark.parametrize("only", ["seed", "expand", "constrain"])
def test_each_loss_can_be_switched(
    tiny_images: ImageSet, finished_sec_run: Path, tmp_path: Path, only: str
) -> None:
    off = [f"segmenter.sec.{n}=0" for n in ("seed", "expand", "constrain") if n != only]
    run = _segmenter(tiny_images, finished_sec_run, tmp_path / "run", *off)
    (first, *_), (whole, *_) = (
        read_metrics(folder / "segmenter" / "metrics.jsonl") for folder in (run, finished_sec_run)
    )
    for name in TERMS:  # of the first step, before weights differ
        assert first[name] == (whole[name] if name.startswith(only) else 0)
    assert first["loss"] == pytest.approx(sum(first[name] for name in TERMS), rel=1e-5)
    one, all_of_them = (
        load_checkpoint(folder / "segmenter" / "weights.safetensors")[0]
        for folder in (run, finished_sec_run)
    )
    assert any(not torch.equal(one[name], all_of_them[name]) for name in one)


def test_weights_scale_the_losses(
    tiny_images: ImageSet, finished_sec_run: Path, tmp_path: Path
) -> None:
    weights = ("segmenter.sec.seed=2", "segmenter.sec.expand=3", "segmenter.sec.constrain=0.5")
    run = _segmenter(tiny_images, finished_sec_run, tmp_path / "run", *weights)
    row = read_metrics(run / "segmenter" / "metrics.jsonl")[0]
    expanded = sum(row[name] for name in TERMS[1:4])
    expected = 2 * row["seed"] + 3 * expanded + 0.5 * row["constrain"]
    assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_seeds_alone_are_the_baseline(
    tiny_images: ImageSet, finished_sec_run: Path, tmp_path: Path
) -> None:
    run = _segmenter(
        tiny_images, finished_sec_run, tmp_path / "run", "segmenter.loss=cross_entropy"
    )
    row = read_metrics(run / "segmenter" / "metrics.jsonl")[0]
    assert not set(TERMS) & set(row) and row["loss"] > 0
    inputs = [read_stage(folder / "segmenter")["inputs"] for folder in (run, finished_sec_run)]
    assert inputs[0] == inputs[1]


@pytest.mark.parametrize(
    ("method", "finished"), [("affinitynet", "finished_run"), ("irnet", "finished_irnet_run")]
)
def test_other_plain_segmenters_may_have_its_losses(
    tiny_images: ImageSet,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    method: str,
    finished: str,
) -> None:
    run = request.getfixturevalue(finished)
    out = copy_run(run, tmp_path / "run", without=["segmenter"])
    overrides = ("segmenter.loss=sec", "segmenter.sec.crf.iterations=1")
    recipe = tiny_recipe(*overrides, method=method)
    train(recipe, tiny_images, out, stages=["segmenter"], device="cpu")
    assert set(TERMS) <= set(read_metrics(out / "segmenter" / "metrics.jsonl")[0])


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("demo_sec", ("segmenter.balance=0.75",)),
        ("affinitynet_mobilenetv2", ("segmenter.loss=sec",)),
        ("irnet_mobilenetv2", ("segmenter.loss=sec",)),
    ],
)
def test_a_balance_that_nothing_looks_at_is_refused(name: str, overrides: tuple[str, ...]) -> None:
    expected = r": segmenter: `balance` is 0\.75, but `loss` is 'sec', .*: set `balance` to 0$"
    with pytest.raises(ConfigError, match=expected):
        load_recipe(name, overrides)
    recipe = load_recipe(name, [*overrides, "segmenter.balance=0"])
    assert recipe.segmenter.loss == "sec"
    assert load_recipe(name, [*overrides, "segmenter.loss=cross_entropy"]).segmenter.balance == 0.75


def test_a_run_labels_by_cams_of_given_classes(
    finished_sec_run: Path, tiny_images: ImageSet
) -> None:
    predictor = RunPredictor(finished_sec_run, "cpu")
    image = read_image(tiny_images.select("val").samples[0].image_path)
    assert predictor.predict_one(image, (1,), "cam").label.max() in (0, 2)
    assert not (finished_sec_run / "labels").exists()
