"""What every method promises of its runs; the test file of a method inherits it in a few lines."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from tiny_run import (
    METHODS,
    assert_same_run,
    copy_run,
    errors_of,
    kill_training,
    results_of,
    start_group,
    tiny_recipe,
    train_apart,
)

from wsss.errors import ConfigError
from wsss.runtime.io.image_io import read_image, read_label_map
from wsss.runtime.io.score_maps import load_score_maps
from wsss.training.data.image_set import ImageSet
from wsss.training.engine.checkpoint import load_checkpoint
from wsss.training.engine.metrics import read_metrics
from wsss.training.engine.run import read_stage
from wsss.training.methods import open_method
from wsss.training.pipeline import train
from wsss.training.predict.measure import evaluate
from wsss.training.predict.run_predictor import RunPredictor
from wsss.training.recipes import load_recipe

SGD = ("optimizer=sgd", "learning_rate=0.01", "momentum=0.5", "new_layer_factor=2")
"""For runs that are compared up to rounding: Adam would blow it up where a gradient is almost 0."""

Kill = tuple[str, int, str, str]
"""Part of the run, number of the change of a file there that does not happen any more, and what
is and is not in the run then."""


class MethodContract:
    """Tests of one method.

    Attributes:
        method: its name.
        has_walk: whether a run labels images by a random walk.
        refused: settings of its demo recipe that cannot be, with the message.
        cams_refused: what a run with `cams_path` says if nothing else is set.
        epochs: settings of runs that are killed, so that there is something to interrupt.
        kills: where they are killed; slow, because mechanisms have their own test in
            `test_resume.py`.
        shared: settings of runs that two processes train.
        groups: the stages that two processes do together, one call each; every call starts from
            what one process has made.
        absolute: tolerance of weights.
    """

    method: ClassVar[str]
    has_walk: ClassVar[bool] = False
    refused: ClassVar[tuple[tuple[str, str], ...]] = ()
    cams_refused: ClassVar[str]
    epochs: ClassVar[tuple[str, ...]]
    kills: ClassVar[tuple[Kill, ...]]
    shared: ClassVar[tuple[str, ...]]
    groups: ClassVar[tuple[tuple[str, ...], ...]]
    absolute: ClassVar[float] = 2e-5

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        marked = {
            name for m in metafunc.definition.iter_markers("parametrize") for name in m.args[:1]
        }
        if "kill" in metafunc.fixturenames and "kill" not in marked:
            metafunc.parametrize("kill", self.kills, ids=lambda kill: f"{kill[0]} {kill[1]}")
        if "refusal" in metafunc.fixturenames:
            metafunc.parametrize("refusal", self.refused, ids=lambda row: row[0])

    @pytest.fixture(scope="class")
    @classmethod
    def finished(cls, finished_run_of: Callable[[str], Path]) -> Path:
        """A run with all stages; not to be changed."""
        return finished_run_of(cls.method)

    # What a run leaves

    def test_every_stage_leaves_its_record_and_its_files(
        self, finished: Path, tiny_images: ImageSet
    ) -> None:
        networks = METHODS[self.method][1]
        for stage in open_method(self.method).stages:
            record = read_stage(finished / stage.name)
            assert record["stage"] == stage.name
            assert record["settings"]["seed"] == 0
            assert record["seconds"] >= 0 and record["memory"].keys() == {"host_mib"}
            assert set(record["inputs"]) == {"images", *stage.needs}
            weights = finished / stage.name / "weights.safetensors"
            assert weights.is_file() == (stage.name in networks)
        assert not list(finished.rglob("resume.safetensors")) + list(finished.rglob("*.tmp"))
        for stage in ("seeds", "labels"):
            if not (finished / stage).exists():
                continue
            for sample in tiny_images.select("train").samples:
                label_map = read_label_map(finished / stage / f"{sample.name}.png")
                assert label_map.shape == read_image(sample.image_path).shape[:2]
                allowed = {0, *(label + 1 for label in sample.labels or ())}
                undecided = {255} if stage == "seeds" else set()
                assert set(np.unique(label_map)) <= allowed | undecided

    def test_a_run_labels_as_its_stages_did(self, finished: Path, tiny_images: ImageSet) -> None:
        """The stored CAMs are half precision, so that labels may differ in a pixel."""
        predictor = RunPredictor(finished, "cpu")
        samples = tiny_images.select("train").samples
        for sample in samples[:4]:
            image = read_image(sample.image_path)
            stored = load_score_maps(finished / "cam" / "scores" / f"{sample.name}.npz")
            maps = predictor.score_maps(image, sample.labels, "cam")
            np.testing.assert_allclose(maps.scores, stored.scores, atol=1e-3)
            if self.has_walk:
                found = predictor.recipe_label(image, sample.labels, "labels")
                labels = read_label_map(finished / "labels" / f"{sample.name}.png")
                assert (found == labels).mean() > 0.99
            else:
                with pytest.raises(
                    ConfigError, match=r"unknown mode 'walk': run .* has segmenter, cam"
                ):
                    predictor.predict_one(image, sample.labels, "walk")
        report = evaluate(finished, tiny_images, device="cpu")
        assert report.miou == read_stage(finished / "segmenter")["figures"]["miou"]

    # What is refused

    def test_settings_that_cannot_be(self, refusal: tuple[str, str]) -> None:
        override, message = refusal
        with pytest.raises(ConfigError, match=message):
            load_recipe(METHODS[self.method][0], override.split())

    def test_cams_of_another_method_leave_the_classifier_untrained(
        self, finished: Path, tiny_images: ImageSet, tmp_path: Path
    ) -> None:
        recipe, cams = tiny_recipe(method=self.method), finished / "cam" / "scores"
        with pytest.raises(ConfigError, match=self.cams_refused):
            train(recipe, tiny_images, tmp_path / "run", cams_path=cams, device="cpu")

    # Kills

    @pytest.fixture(scope="class")
    @classmethod
    def straight(cls, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """An uninterrupted run, in a process like those that are killed."""
        out = tmp_path_factory.mktemp(f"straight_{cls.method}") / "run"
        train_apart(tiny_data, out, cls.epochs, method=cls.method, save_every_step=True)
        return out

    @pytest.mark.slow
    def test_a_killed_run_ends_in_the_same_bits(
        self, tiny_data: Path, straight: Path, tmp_path: Path, kill: Kill
    ) -> None:
        below, at, present, absent = kill
        out = tmp_path / "run"
        kill_training(tiny_data, out, below, at, self.epochs, method=self.method)
        assert (out / present).exists() and not (out / absent).exists()
        train_apart(tiny_data, out, self.epochs, method=self.method, save_every_step=True)
        assert_same_run(straight, out)

    # Two processes

    @pytest.fixture(scope="class")
    @classmethod
    def single(
        cls, finished: Path, tiny_images: ImageSet, tmp_path_factory: pytest.TempPathFactory
    ) -> Path:
        """One process; stages whose settings are those of the finished run are that run's."""
        out = copy_run(finished, tmp_path_factory.mktemp(f"single_{cls.method}") / "run")
        recipe = tiny_recipe(*cls.shared, method=cls.method)
        train(recipe, tiny_images, out, device="cpu")
        return out

    @pytest.fixture(scope="class")
    @classmethod
    def double(
        cls, single: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> Path:
        """The stages done by two processes, each group from what one process had made before."""
        stages = [stage for group in cls.groups for stage in group]
        folder = tmp_path_factory.mktemp(f"double_{cls.method}")
        out = copy_run(single, folder / "run", without=stages)
        for group in cls.groups:
            processes = start_group(
                tiny_data, out, cls.shared, method=cls.method, stages=list(group)
            )
            for process in processes:
                process.join()
            assert [process.exitcode for process in processes] == [0, 0], errors_of(out)
            if group != cls.groups[-1]:
                for stage in set(group) & set(METHODS[cls.method][1]):
                    shutil.copy(single / stage / "weights.safetensors", out / stage)
        return out

    @pytest.mark.slow
    def test_two_processes_compute_what_one_does(self, single: Path, double: Path) -> None:
        self.compare_processes(single, double)

    def compare_processes(self, single: Path, double: Path) -> None:
        """Files, records, every step, weights and labels of both runs."""
        assert results_of(double).keys() == results_of(single).keys()
        stages = {stage for group in self.groups for stage in group}
        for stage in stages:
            records = [json.loads((r / stage / "stage.json").read_text()) for r in (single, double)]
            assert [record["processes"] for record in records] == [1, 2]
            assert records[0]["digest"] == records[1]["digest"]
            # A rounding may turn single pixels.
            assert records[1]["figures"] == pytest.approx(records[0]["figures"], rel=1e-2)
        for stage in stages & set(METHODS[self.method][1]):
            one, two = (read_metrics(run / stage / "metrics.jsonl") for run in (single, double))
            assert len(one) == len(two) == 4
            assert one[0]["loss"] != pytest.approx(one[-1]["loss"], rel=1e-3)  # it has learnt
            for expected, found in zip(one, two, strict=True):
                assert found == pytest.approx(expected, rel=1e-3)
            weights = [
                load_checkpoint(run / stage / "weights.safetensors")[0] for run in (single, double)
            ]
            assert weights[0].keys() == weights[1].keys()
            for name, value in weights[0].items():
                torch.testing.assert_close(
                    weights[1][name], value, rtol=1e-3, atol=self.absolute, msg=f"{stage}: {name}"
                )
        for path in sorted(single.glob("labels/*.png")):
            pair = [read_label_map(run / "labels" / path.name) for run in (single, double)]
            assert (pair[0] != pair[1]).mean() < 0.02
