"""The self-guided network end to end: its rounds of labels, its switches, kills, two processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import wsss
from method_contract import SGD, Kill, MethodContract
from tiny_run import (
    assert_same_run,
    copy_run,
    files_of,
    kill_training,
    tiny_recipe,
    train_apart,
)

from wsss.errors import ConfigError
from wsss.runtime.io.image_io import read_image, read_label_map
from wsss.runtime.io.progress import SILENT
from wsss.runtime.io.score_maps import load_score_maps
from wsss.training.data.image_set import ImageSet
from wsss.training.demo.scenes import draw_scene
from wsss.training.engine.checkpoint import load_checkpoint
from wsss.training.engine.metrics import read_metrics
from wsss.training.engine.networks import open_network
from wsss.training.engine.run import Run, read_stage
from wsss.training.methods.selfguided.network import SelfGuidedNet
from wsss.training.methods.selfguided.train import STEPS, refined_maps, self_guided_objective
from wsss.training.pipeline import train
from wsss.training.predict.measure import evaluate

CPU = torch.device("cpu")
ROUNDS = "segmenter/labels"


class TestSelfGuided(MethodContract):
    method = "selfguided"
    cams_refused = "`cams_path` leaves the classifier untrained: leave it out"
    refused = (
        ("segmenter.loss=sec", r"segmenter\.loss is no key of this recipe"),
        ("segmenter.start=weights", "the first labels come of the classifier"),
        ("selfguided.steps=-1", r"selfguided\.steps is -1"),
    )
    epochs = ("cam.train.epochs=2", "segmenter.train.epochs=4")
    kills = (
        (f"{ROUNDS}/epoch_0", 4, f"{ROUNDS}/epoch_0/train_2.png", f"{ROUNDS}/epoch_0/train_3.png"),
        (f"{ROUNDS}/epoch_2", 6, f"{ROUNDS}/epoch_1", f"{ROUNDS}/epoch_2/train_5.png"),
        # It goes on in the middle of an epoch, with the labels that are there.
        ("segmenter/resume.safetensors", 4, f"{ROUNDS}/epoch_1", f"{ROUNDS}/epoch_2"),
        ("segmenter/weights.safetensors", 1, f"{ROUNDS}/epoch_3", "segmenter/weights.safetensors"),
        ("labels/step2", 5, "segmenter/weights.safetensors", "labels/train_4.png"),
    )
    shared = tuple(f"segmenter.train.{text}" for text in SGD)
    groups = (("segmenter", "labels"),)
    absolute = 1e-4

    @pytest.mark.slow
    def test_a_run_that_saves_once_an_epoch_ends_in_the_same_bits(
        self, tiny_data: Path, straight: Path, tmp_path: Path, kill: Kill
    ) -> None:
        below, at, present, absent = kill
        if "resume" in below:
            at = 2
        out, options = tmp_path / "run", {"method": self.method, "save_every_step": False}
        kill_training(tiny_data, out, below, at, self.epochs, **options)
        assert (out / present).exists() and not (out / absent).exists()
        train_apart(tiny_data, out, self.epochs, **options)
        assert_same_run(straight, out)


def _from_segmenter(images: ImageSet, finished: Path, out: Path, *overrides: str) -> Path:
    """A run that differs from the finished one behind its classifier."""
    copy_run(finished, out, without=["segmenter", "labels"])
    recipe = tiny_recipe(*overrides, method="selfguided")
    train(recipe, images, out, stages=["segmenter", "labels"], device="cpu")
    return out


def test_every_image_gets_labels_to_learn_and_maps_of_each_step(
    finished_self_guided_run: Path, tiny_images: ImageSet
) -> None:
    run = finished_self_guided_run
    rounds = run / "segmenter" / "labels"
    assert [path.name for path in rounds.iterdir()] == ["epoch_1"]  # of the last epoch alone
    for sample in tiny_images.select("train").samples:
        size = read_image(sample.image_path).shape[:2]
        allowed = {0, *(label + 1 for label in sample.labels or ())}
        learnt = read_label_map(rounds / "epoch_1" / f"{sample.name}.png")
        assert learnt.shape == size and set(np.unique(learnt)) <= allowed | {255}
        for step in STEPS:
            maps = load_score_maps(run / "labels" / step / f"{sample.name}.npz")
            assert tuple(maps.classes) == sample.labels and maps.size == size
            assert maps.scores.max(initial=0) <= 1


def test_figures_are_those_of_the_stored_maps(
    finished_self_guided_run: Path, tiny_images: ImageSet
) -> None:
    figures = read_stage(finished_self_guided_run / "labels")["figures"]
    keys = {f"{step}_{kind}" for step in STEPS for kind in ("miou", "best_miou")}
    assert figures.keys() == keys | {"miou", "images"}
    for step in STEPS:
        assert figures[f"{step}_best_miou"] >= figures[f"{step}_miou"]
        place = finished_self_guided_run / "labels" / step
        report = evaluate(place, tiny_images, split="train")
        assert report.miou == figures[f"{step}_miou"] and report.image_labels_used
        assert report.background == "threshold 0.4"
    labels = evaluate(finished_self_guided_run / "labels", tiny_images, split="train")
    assert labels.miou == figures["miou"] == pytest.approx(figures["step3_miou"], abs=0.5)


def test_eval_by_the_command_line(finished_self_guided_run: Path, tiny_data: Path) -> None:
    run = finished_self_guided_run
    arguments = ("eval", run, "--data", tiny_data, "--json")
    segmenter = json.loads(wsss(*arguments).succeeded().out)
    assert segmenter["miou"] == read_stage(run / "segmenter")["figures"]["miou"]
    cam = json.loads(wsss(*arguments, "--mode", "cam", "--split", "train").succeeded().out)
    assert cam["miou"] == pytest.approx(read_stage(run / "cam")["figures"]["miou"], abs=0.5)
    assert "has segmenter, cam" in wsss(*arguments, "--mode", "walk").line()


def test_the_network_starts_from_the_classifier_and_trains_both_heads(
    finished_self_guided_run: Path,
) -> None:
    (cam, _), (both, header) = (
        load_checkpoint(finished_self_guided_run / stage / "weights.safetensors")
        for stage in ("cam", "segmenter")
    )
    assert header["network"]["class"] == "SelfGuidedNet" and header["method"] == "selfguided"
    assert set(cam) < set(both)
    change = (both["classifier.weight"] - cam["classifier.weight"]).abs().max()
    assert 0 < float(change) < float(cam["classifier.weight"].abs().max())
    rows = read_metrics(finished_self_guided_run / "segmenter" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(0 < 0.1 * row["agreement"] + row["classification"] < row["loss"] for row in rows)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_classification_head_learns_with_the_dropout_of_the_classifier(
    tiny_images: ImageSet, finished_self_guided_run: Path, share: float
) -> None:
    folder = finished_self_guided_run
    recipe = tiny_recipe(f"cam.dropout={share}", method="selfguided")
    run = Run(folder, recipe, tiny_images, None, None, None, CPU, SILENT)
    network, _ = open_network(SelfGuidedNet, folder / "segmenter" / "weights.safetensors", CPU)
    objective = self_guided_objective(run, network, lambda index, generator: {})
    x = torch.randn(64, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    seen = []
    network.classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        objective.network.eval()(x)
        objective.network.train()(x)
    kept, learnt = seen[0], seen[2]  # each pass asks for classes, and then for maps
    hidden = ((kept > 0) & (learnt == 0)).sum() / (kept > 0).sum()
    assert float(hidden) == pytest.approx(share, abs=0.05)
    assert share or torch.equal(kept, learnt)


@pytest.mark.parametrize(
    ("off", "equal"), [("affinity", ("step1", "step2")), ("guided", ("step2", "step3"))]
)
def test_a_step_that_is_switched_off_passes_its_maps_on(
    tiny_images: ImageSet,
    finished_self_guided_run: Path,
    tmp_path: Path,
    off: str,
    equal: tuple[str, str],
) -> None:
    override = f"selfguided.{off}=false"
    run = _from_segmenter(tiny_images, finished_self_guided_run, tmp_path / "run", override)
    for folder, same in ((run, True), (finished_self_guided_run, False)):
        first, second = (files_of(folder / "labels" / step, "*.npz") for step in equal)
        assert first.keys() == second.keys() and (first == second) == same
    figures = read_stage(run / "labels")["figures"]
    assert figures[f"{equal[0]}_miou"] == figures[f"{equal[1]}_miou"]
    learnt = [
        files_of(folder / "segmenter" / "labels", "**/*.png")
        for folder in (run, finished_self_guided_run)
    ]
    assert learnt[0].keys() == learnt[1].keys() and learnt[0] != learnt[1]


@pytest.mark.parametrize(
    ("scales", "flip"), [("1.5,1.0", "true"), ("0.5", "true"), ("1.0", "false")]
)
def test_maps_walk_by_features_of_the_image_itself(
    finished_self_guided_run: Path, monkeypatch: pytest.MonkeyPatch, scales: str, flip: str
) -> None:
    """At full size and not mirrored, whatever passes make the maps."""
    weights = finished_self_guided_run / "segmenter" / "weights.safetensors"
    network, _ = open_network(SelfGuidedNet, weights, CPU)
    image = draw_scene(np.random.default_rng(0), (65, 97), 1).image
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        expected = network.maps(pixels).features
    walked: list[torch.Tensor] = []

    def recorded(maps: torch.Tensor, features: torch.Tensor, settings: object) -> torch.Tensor:
        walked.append(features)
        return maps

    monkeypatch.setattr("wsss.training.methods.selfguided.train.walk_to_alike", recorded)
    overrides = (f"selfguided.scales=[{scales}]", f"selfguided.flip={flip}")
    recipe = tiny_recipe(*overrides, method="selfguided")
    refined_maps(network, image, (0, 1), recipe, CPU)
    (features,) = walked
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_the_loss_of_agreement_can_be_switched(
    tiny_images: ImageSet, finished_self_guided_run: Path, tmp_path: Path
) -> None:
    override = "selfguided.affinity_weight=0"
    run = _from_segmenter(tiny_images, finished_self_guided_run, tmp_path / "run", override)
    row, other = (
        read_metrics(folder / "segmenter" / "metrics.jsonl")[0]
        for folder in (run, finished_self_guided_run)
    )
    assert row["agreement"] == 0 and row["classification"] == other["classification"]
    assert row["loss"] == pytest.approx(other["loss"] - 0.1 * other["agreement"], rel=1e-5)


def test_without_alternation_labels_are_those_of_the_first_round(
    tiny_images: ImageSet, finished_self_guided_run: Path, tmp_path: Path
) -> None:
    override = "selfguided.alternate=false"
    run = _from_segmenter(tiny_images, finished_self_guided_run, tmp_path / "run", override)
    labels = run / "segmenter" / "labels"
    assert [path.name for path in labels.iterdir()] == ["epoch_0"]
    once = tmp_path / "once"
    _from_segmenter(tiny_images, finished_self_guided_run, once, "segmenter.train.epochs=1")
    first = files_of(once / "segmenter" / "labels" / "epoch_0", "*.png")
    assert first and files_of(labels / "epoch_0", "*.png") == first
    last = finished_self_guided_run / "segmenter" / "labels" / "epoch_1"
    assert files_of(last, "*.png") != first


def test_seeds_are_refused(
    finished_self_guided_run: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    recipe, seeds = tiny_recipe(method="selfguided"), finished_self_guided_run / "labels"
    with pytest.raises(
        ConfigError, match="selfguided has no seeds of its own: leave `seeds_path` out"
    ):
        train(recipe, tiny_images, tmp_path / "run", seeds_path=seeds)
