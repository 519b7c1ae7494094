"""SEC end to end: what its run leaves, that each loss can be switched, and two processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import METHODS, copy_run, results_of, start_group, tiny_recipe

from wsss.errors import ConfigError
from wsss.runtime.io.image_io import read_image
from wsss.training.data.image_set import ImageSet
from wsss.training.engine.checkpoint import load_checkpoint
from wsss.training.engine.metrics import read_metrics
from wsss.training.engine.run import read_stage
from wsss.training.methods.sec.train import TERMS
from wsss.training.pipeline import METHODS as STAGES_OF
from wsss.training.pipeline import train
from wsss.training.predict.measure import evaluate
from wsss.training.predict.run_predictor import RunPredictor
from wsss.training.recipes import load_recipe

STAGES = STAGES_OF["sec"]
SGD = ("optimizer=sgd", "learning_rate=0.01", "momentum=0.5", "new_layer_factor=2")


def _segmenter(images: ImageSet, finished: Path, out: Path, *overrides: str) -> Path:
    """The segmenter of a run that differs from the finished one in this stage alone."""
    copy_run(finished, out, without=["segmenter"])
    recipe = tiny_recipe(*overrides, method="sec")
    train(recipe, images, out, stages=["segmenter"], device="cpu")
    return out


def test_every_stage_leaves_its_record_and_its_files(finished_sec_run: Path) -> None:
    for stage in STAGES:
        record = read_stage(finished_sec_run / stage.name)
        assert record["stage"] == stage.name
        assert set(record["inputs"]) == {"images", *stage.needs}
        weights = finished_sec_run / stage.name / "weights.safetensors"
        assert weights.is_file() == (stage.name in METHODS["sec"][1])
    assert not (finished_sec_run / "labels").exists()


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


def test_what_cannot_be_is_refused(
    finished_sec_run: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    for overrides, message in (
        (("seed=0", "expand=0", "constrain=0"), "are all 0, one must be above"),
        (("crf.iterations=0",), r"`constrain` is 1, but `crf\.iterations` is 0"),
        (("object_decay=1",), r"segmenter\.sec\.object_decay is 1, must be less than 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_recipe(*(f"segmenter.sec.{text}" for text in overrides), method="sec")
    with pytest.raises(
        ConfigError, match=r"untrained: leave it out, or set segmenter\.start=weights"
    ):
        train(
            tiny_recipe(method="sec"),
            tiny_images,
            tmp_path / "run",
            cams_path=finished_sec_run / "cam" / "scores",
        )


def test_a_run_labels_and_is_measured(finished_sec_run: Path, tiny_images: ImageSet) -> None:
    report = evaluate(finished_sec_run, tiny_images, device="cpu")
    assert report.miou == read_stage(finished_sec_run / "segmenter")["figures"]["miou"]
    predictor = RunPredictor(finished_sec_run, "cpu")
    image = read_image(tiny_images.select("val").samples[0].image_path)
    assert predictor.predict_one(image).label.shape == image.shape[:2]
    assert predictor.predict_one(image, (1,), "cam").label.max() in (0, 2)
    with pytest.raises(ConfigError, match="method sec, which has no walk"):
        predictor.predict_one(image, (1,), "labels")


def test_two_processes_compute_what_one_computes(
    tiny_data: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    """Plain SGD: Adam would blow up rounding where a gradient is almost zero."""
    overrides = tuple(f"{s}.train.{setting}" for s in METHODS["sec"][1] for setting in SGD)
    single = tmp_path / "single"
    train(tiny_recipe(*overrides, method="sec"), tiny_images, single, device="cpu")
    double = copy_run(single, tmp_path / "double", without=["segmenter"])
    group = start_group(tiny_data, double, overrides, method="sec", stages=["segmenter"])
    for process in group:
        process.join()
    assert [process.exitcode for process in group] == [0, 0]
    assert results_of(double).keys() == results_of(single).keys()
    rows = [read_metrics(run / "segmenter" / "metrics.jsonl") for run in (single, double)]
    assert rows[0][0]["loss"] != pytest.approx(rows[0][-1]["loss"], rel=1e-3)
    for one, two in zip(*rows, strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    weights = [load_checkpoint(r / "segmenter/weights.safetensors")[0] for r in (single, double)]
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, rtol=1e-3, atol=1e-4)
    digests = [
        json.loads((r / "segmenter/stage.json").read_text())["digest"] for r in (single, double)
    ]
    assert digests[0] == digests[1]
