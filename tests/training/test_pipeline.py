"""The whole method end to end, when its stages are done again, and what a run refuses."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_run import (
    CLASSES,
    NETWORKS,
    NUM_TRAIN,
    NUM_VAL,
    STAGES,
    TRAIN_NAMES,
    copy_run,
    files_of,
    results_of,
    tiny_recipe,
)

from wsss.errors import ArtifactError, ConfigError, DataError
from wsss.runtime.io.image_io import read_image, read_label_map, write_label_map
from wsss.runtime.io.progress import SILENT, Progress
from wsss.runtime.io.score_maps import load_score_maps
from wsss.training.data.image_set import ImageSet
from wsss.training.engine.checkpoint import load_checkpoint, save_checkpoint
from wsss.training.engine.run import Run, read_stage
from wsss.training.methods.affinitynet.method import METHOD
from wsss.training.methods.affinitynet.train import train_affinity
from wsss.training.pipeline import TrainResult, train

CPU = torch.device("cpu")


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def _train(images: ImageSet, out: Path, *overrides: str, **options: object) -> TrainResult:
    return train(tiny_recipe(*overrides), images, out, device="cpu", **options)  # type: ignore[arg-type]


def _times(run: Path, stage: str) -> dict[str, int]:
    return {
        str(path.relative_to(run)): path.stat().st_mtime_ns
        for path in sorted((run / stage).rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run that may be changed."""
    return copy_run(finished_run, tmp_path / "run")


def _bare_run(images: ImageSet, folder: Path, *overrides: str) -> Run:
    return Run(folder, tiny_recipe(*overrides), images, None, None, None, CPU, SILENT)


# What a run leaves


def test_every_stage_leaves_its_record_and_its_files(
    finished_run: Path, tiny_images: ImageSet
) -> None:
    for stage in STAGES:
        record = read_stage(finished_run / stage)
        assert record["stage"] == stage
        assert record["settings"]["seed"] == 0
        assert record["seconds"] >= 0
        assert record["memory"].keys() == {"host_mib"}
        assert sys.platform != "linux" or 50 < record["memory"]["host_mib"] < 50_000
        assert set(record["inputs"]) == {"images", *METHOD.stage(stage).needs}
    figures = {stage: read_stage(finished_run / stage)["figures"] for stage in STAGES}
    assert figures["cam"].keys() == {"val_classification", "val_map", "miou", "images"}
    assert figures["seeds"].keys() == {"decided", "miou", "accuracy", "images"}
    assert figures["labels"].keys() == {"walk_miou", "walk_images", "miou", "images"}
    assert figures["segmenter"].keys() == {"miou", "images"}
    assert [figures[stage]["images"] for stage in ("cam", "seeds", "labels")] == [NUM_TRAIN] * 3
    assert figures["segmenter"]["images"] == NUM_VAL
    for stage in NETWORKS:
        assert (finished_run / stage / "weights.safetensors").is_file()
        assert not (finished_run / stage / "resume.safetensors").exists()


def test_every_training_image_gets_maps_seeds_and_labels(
    finished_run: Path, tiny_images: ImageSet
) -> None:
    for sample in tiny_images.select("train").samples:
        size = read_image(sample.image_path).shape[:2]
        for stage in ("cam", "labels"):
            maps = load_score_maps(finished_run / stage / "scores" / f"{sample.name}.npz")
            assert (maps.size, tuple(maps.classes)) == (size, sample.labels)
            assert maps.scores.max(initial=0) <= 1
        allowed = {0, *(label + 1 for label in sample.labels or ())}
        for stage, extra in (("seeds", {255}), ("labels", set())):
            label_map = read_label_map(finished_run / stage / f"{sample.name}.png")
            assert label_map.shape == size
            assert set(np.unique(label_map).tolist()) <= allowed | extra
    stored = {path.stem for path in (finished_run / "labels").glob("*.png")}
    assert stored == set(TRAIN_NAMES)


def test_an_image_without_classes_is_background(finished_run: Path, tiny_images: ImageSet) -> None:
    sample = tiny_images.select("train").samples[-1]
    assert sample.labels == ()
    for stage in ("seeds", "labels"):
        assert not read_label_map(finished_run / stage / f"{sample.name}.png").any()


def test_figures_are_those_of_the_stored_files(finished_run: Path, tiny_images: ImageSet) -> None:
    """The label figure again, by a loop over pixels of a naive confusion count."""
    hits, unions = np.zeros(3), np.zeros(3)
    for sample in tiny_images.select("train").samples:
        found = read_label_map(finished_run / "labels" / f"{sample.name}.png")
        truth = sample.load_mask()
        for label in range(3):
            hits[label] += ((found == label) & (truth == label)).sum()
            unions[label] += ((found == label) | (truth == label)).sum()
    expected = 100 * float((hits / unions).mean())
    assert read_stage(finished_run / "labels")["figures"]["miou"] == pytest.approx(
        expected, abs=1e-3
    )


# What is done again


def test_a_second_call_does_nothing(copy: Path, tiny_images: ImageSet) -> None:
    before = {stage: _times(copy, stage) for stage in STAGES}
    notes = Notes()
    result = _train(tiny_images, copy, progress=notes)
    assert notes.lines == [f"{stage}: up to date" for stage in STAGES]
    assert {stage: _times(copy, stage) for stage in STAGES} == before
    assert result.figures["labels"] == read_stage(copy / "labels")["figures"]
    assert json.loads(json.dumps(result.to_json()))["run"] == str(copy)


def test_the_walk_shapes_labels_and_segmenter_only(copy: Path, tiny_images: ImageSet) -> None:
    before = {stage: _times(copy, stage) for stage in STAGES}
    notes = Notes()
    _train(tiny_images, copy, "walk.beta=2", progress=notes)
    assert notes.lines == [f"{stage}: up to date" for stage in ("cam", "seeds", "affinity")]
    for stage in ("cam", "seeds", "affinity"):
        assert _times(copy, stage) == before[stage]
    for stage in ("labels", "segmenter"):
        after = _times(copy, stage)
        assert all(after[name] > before[stage][name] for name in after if name in before[stage])
    assert "beta = 2.0" in (copy / "recipe.toml").read_text()


@pytest.mark.parametrize(
    ("override", "stage"),
    [("cam.threshold=0.6", "cam"), ("segmenter.scales=[0.5]", "segmenter")],
)
def test_settings_that_only_measure_train_nothing(
    copy: Path, tiny_images: ImageSet, override: str, stage: str
) -> None:
    before, figures = results_of(copy), read_stage(copy / stage)["figures"]
    notes = Notes()
    result = _train(tiny_images, copy, override, progress=notes)
    assert results_of(copy) == before
    assert f"{stage}: up to date" not in notes.lines
    assert result.figures[stage] != figures
    assert _train(tiny_images, copy).figures[stage] == figures


def test_masks_only_measure(finished_run: Path, copy: Path, tiny_images: ImageSet) -> None:
    blind = replace(tiny_images, samples=tuple(replace(s, mask=None) for s in tiny_images.samples))
    result = _train(blind, copy)
    assert results_of(copy) == results_of(finished_run)
    assert result.figures["labels"] == {}


def test_stages_that_are_kept_must_be_those_of_the_recipe(
    copy: Path, tiny_images: ImageSet
) -> None:
    recipe = (copy / "recipe.toml").read_text()
    message = r"stage 'affinity' .* made with affinity\.radius = 3, the recipe says 4: add it"
    with pytest.raises(ConfigError, match=message):
        _train(tiny_images, copy, "affinity.radius=4", stages=["segmenter"])
    with pytest.raises(ConfigError, match=r"'cam' .* was made of other images: add it"):
        fewer = replace(tiny_images, samples=tiny_images.samples[1:])
        _train(fewer, copy, stages=["labels"])
    (copy / "given").mkdir()
    for name in TRAIN_NAMES:
        np.savez(copy / "given" / f"{name}.npz", scores=np.ones((1, 3, 4), np.float32), classes=[0])
    starts = ("affinity.start=weights", "segmenter.start=weights")
    with pytest.raises(ConfigError, match=r"'cam' .* was made of other cams: add it"):
        _train(tiny_images, copy, *starts, cams_path=copy / "given", stages=["seeds"])
    assert (copy / "recipe.toml").read_text() == recipe
    _train(tiny_images, copy, "seeds.foreground=0.5", stages=["seeds"])
    with pytest.raises(ConfigError, match=r"'affinity' .* was made from another 'seeds': add it"):
        _train(tiny_images, copy, "seeds.foreground=0.5", stages=["labels"])


def test_the_same_settings_give_the_same_bytes(
    finished_run: Path, copy: Path, tiny_images: ImageSet
) -> None:
    """There and back again."""
    _train(tiny_images, copy, "walk.steps=0")
    assert results_of(copy) != results_of(finished_run)
    _train(tiny_images, copy)
    assert results_of(copy) == results_of(finished_run)


def test_a_removal_killed_halfway_leaves_no_stage_that_looks_finished(
    finished_run: Path, copy: Path, tiny_images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree

    def die(folder: Path) -> None:
        (folder / "train_0.png").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        _train(tiny_images, copy, "walk.beta=2")
    monkeypatch.setattr(shutil, "rmtree", remove)
    _train(tiny_images, copy)
    assert results_of(copy) == results_of(finished_run)


def test_a_new_image_list_redoes_everything(copy: Path, tiny_images: ImageSet) -> None:
    notes = Notes()
    fewer = replace(tiny_images, samples=tiny_images.samples[1:])
    _train(fewer, copy, stages=("cam", "seeds"), progress=notes)
    assert notes.lines == []
    assert not (copy / "seeds" / "train_0.png").exists()


def test_one_stage_needs_those_before_it(tiny_images: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`stages` needs 'cam', which has not finished"):
        _train(tiny_images, tmp_path / "run", stages=["labels"])
    with pytest.raises(ConfigError, match="unknown stage 'walk': choose of cam, seeds, affinity"):
        _train(tiny_images, tmp_path / "run", stages=["walk"])


def test_stages_one_by_one_give_the_same_run(
    finished_run: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    out = copy_run(finished_run, tmp_path / "run", without=("affinity", "labels", "segmenter"))
    with pytest.raises(ConfigError, match=r"needs 'affinity', which has not finished.*: add it"):
        _train(tiny_images, out, stages=["labels"])
    for stage in ("affinity", "labels", "segmenter"):
        result = _train(tiny_images, out, stages=[stage])
        assert list(result.figures)[-1] == stage
    assert results_of(out) == results_of(finished_run)


def test_a_stage_is_a_plain_function(
    finished_run: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    out = copy_run(finished_run, tmp_path / "run", without=("affinity",))
    train_affinity(_bare_run(tiny_images, out), out / "affinity", "any digest")
    name = "affinity/weights.safetensors"
    assert (out / name).read_bytes() == (finished_run / name).read_bytes()


# What is brought along


@pytest.mark.parametrize(("scores", "classes"), [("scores", "classes"), ("cam", "keys")])
def test_cams_of_another_method(
    tiny_images: ImageSet, tmp_path: Path, scores: str, classes: str
) -> None:
    """Under our names and under those of the IRNet code; both classes, one class wins the left."""
    cams = tmp_path / "cams"
    cams.mkdir()
    for name in TRAIN_NAMES:
        maps = np.zeros((2, 10, 12), np.float32)
        maps[0, :, :6], maps[1, :, 6:] = 3, 0.5
        np.savez(cams / f"{name}.npz", **{scores: maps, classes: np.array([0, 1])})
    out = tmp_path / "run"
    with pytest.raises(
        ConfigError, match=r"affinity\.start is 'classifier', but `cams_path` leaves"
    ):
        _train(tiny_images, out, cams_path=cams)
    starts = ("affinity.start=weights", "segmenter.start=weights")
    result = _train(tiny_images, out, *starts, cams_path=cams)
    assert list(result.figures) == list(STAGES)
    assert not (out / "cam" / "weights.safetensors").exists()
    for sample in tiny_images.select("train").samples:
        taken = load_score_maps(out / "cam" / "scores" / f"{sample.name}.npz")
        assert taken.classes.tolist() == list(sample.labels or ())
        assert taken.size == read_image(sample.image_path).shape[:2]
        for label, maps in zip(taken.classes, taken.scores, strict=True):
            assert maps.max() == (1.0, 0.5)[label]
    (cams / "train_4.npz").unlink()
    with pytest.raises(
        DataError, match=r"`cams_path` .* lacks files for 1 of 10 .* 'train_4\.npz'"
    ):
        _train(tiny_images, out, *starts, cams_path=cams)


def test_cams_of_unknown_classes_are_refused(tiny_images: ImageSet, tmp_path: Path) -> None:
    cams = tmp_path / "cams"
    cams.mkdir()
    for name in TRAIN_NAMES:
        np.savez(cams / f"{name}.npz", scores=np.ones((1, 3, 4), np.float32), classes=[7])
    with pytest.raises(DataError, match=r"'train_0' name class 7, the class list has 0\.\.1"):
        _train(tiny_images, tmp_path / "run", cams_path=cams, stages=["cam"])
    with pytest.raises(DataError, match="`cams_path`: no such folder"):
        _train(tiny_images, tmp_path / "run", cams_path=tmp_path / "none", stages=["cam"])


def test_seeds_of_another_method(copy: Path, tiny_images: ImageSet, tmp_path: Path) -> None:
    """The masks themselves, a border undecided."""
    seeds = tmp_path / "given"
    for sample in tiny_images.select("train").samples:
        seed = sample.load_mask().copy()
        seed[:3] = 255
        write_label_map(seeds / f"{sample.name}.png", seed)
    notes = Notes()
    result = _train(tiny_images, copy, seeds_path=seeds, progress=notes)
    assert notes.lines == ["cam: up to date"]
    assert result.figures["seeds"]["accuracy"] == 100
    for name in TRAIN_NAMES:
        given, taken = (read_label_map(f / f"{name}.png") for f in (seeds, copy / "seeds"))
        assert np.array_equal(given, taken)
    (seeds / "train_7.png").unlink()
    with pytest.raises(
        DataError, match=r"`seeds_path` .* lacks files for 1 of 10 .* 'train_7\.png'"
    ):
        _train(tiny_images, copy, seeds_path=seeds)


@pytest.mark.parametrize(
    ("size", "label", "message"),
    [
        ((40, 48), 3, r"seed 'train_0\.png' holds label 3, expected 0\.\.2 or 255"),
        ((4, 5), 1, r"seed 'train_0\.png' is 4 x 5, its image 40 x 48"),
    ],
)
def test_seeds_that_do_not_fit_are_refused(
    copy: Path,
    tiny_images: ImageSet,
    tmp_path: Path,
    size: tuple[int, int],
    label: int,
    message: str,
) -> None:
    for name in TRAIN_NAMES:
        write_label_map(tmp_path / "given" / f"{name}.png", np.full(size, label, np.uint8))
    with pytest.raises(DataError, match=message):
        _train(tiny_images, copy, seeds_path=tmp_path / "given", stages=["seeds"])


# What is refused


@pytest.mark.parametrize(
    ("overrides", "classes", "what"),
    [(("name=other",), CLASSES, "recipe"), ((), ("disc", "rod"), "classes")],
)
def test_the_folder_of_another_run_is_refused(
    copy: Path, tiny_images: ImageSet, overrides: tuple[str, ...], classes: tuple[str], what: str
) -> None:
    before = results_of(copy)
    other = replace(tiny_images, classes=classes)
    message = rf"holds another run \(different {what}\): choose another `out`, or `overwrite` it"
    with pytest.raises(ArtifactError, match=message):
        _train(other, copy, *overrides)
    assert results_of(copy) == before
    _train(other, copy, *overrides, overwrite=True, stages=["cam"])
    assert sorted(path.name for path in copy.iterdir()) == ["cam", "recipe.toml", "run.json"]


def test_a_damaged_run_is_refused(copy: Path, tiny_images: ImageSet) -> None:
    (copy / "run.json").write_text("{")
    with pytest.raises(ArtifactError, match="holds another run"):
        _train(tiny_images, copy)


def test_a_folder_of_something_else_is_never_touched(tiny_images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(ArtifactError, match="is not empty and holds no run: choose a new"):
            _train(tiny_images, tmp_path / "photos", overwrite=overwrite)
        with pytest.raises(ArtifactError, match="is a file: choose a folder for `out`"):
            _train(tiny_images, tmp_path / "photos" / "a.jpg", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]


def test_unknown_image_labels_are_refused(tiny_images: ImageSet, tmp_path: Path) -> None:
    samples = (replace(tiny_images.samples[0], labels=None), *tiny_images.samples[1:])
    with pytest.raises(DataError, match="image 'train_0' has no image-level labels: add it"):
        _train(replace(tiny_images, samples=samples), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_overwriting_what_the_stages_need_is_refused(copy: Path, tiny_images: ImageSet) -> None:
    before = files_of(copy, "**/*.safetensors")
    assert before
    with pytest.raises(ConfigError, match="`overwrite` would remove 'cam'"):
        _train(tiny_images, copy, overwrite=True, stages=["labels"])
    assert files_of(copy, "**/*.safetensors") == before


def test_a_backbone_without_weights_is_refused(tiny_images: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give them as `weights_path`"):
        _train(tiny_images, tmp_path / "run", "backbone.from_scratch=false")


def test_weights_are_asked_for_only_where_a_network_starts_from_them(
    copy: Path, tiny_images: ImageSet
) -> None:
    """Nothing but the walk is new: no network starts."""
    _train(tiny_images, copy, "walk.beta=2", stages=["labels"])
    with pytest.raises(ConfigError, match="trains from scratch: leave `weights_path` out"):
        _train(tiny_images, copy, weights_path=copy / "recipe.toml")


def test_weights_of_another_architecture_are_refused(
    copy: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    foreign = tmp_path / "resnet.safetensors"
    save_file({"conv1.weight": torch.ones(64, 3, 7, 7)}, foreign)
    with pytest.raises(ArtifactError, match=r"resnet\.safetensors"):
        _train(tiny_images, tmp_path / "new", "backbone.from_scratch=false", weights_path=foreign)
    path = copy / "cam" / "weights.safetensors"
    tensors, header = load_checkpoint(path)
    del tensors["backbone.stem.0.weight"]
    save_checkpoint(path, tensors, header)
    with pytest.raises(ArtifactError, match=r"lacks tensor 'stem\.0\.weight'"):
        _train(tiny_images, copy, "affinity.radius=4", stages=["affinity"])


# Stages of other runs


def test_equal_stages_of_another_run_are_taken_over(
    finished_run: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    progress = Notes()
    _train(
        tiny_images,
        tmp_path / "run",
        "affinity.radius=4",
        stages=["cam", "seeds", "affinity"],
        reuse=[finished_run],
        progress=progress,
    )
    expected = [f"{stage}: taken over from '{finished_run}'" for stage in ("cam", "seeds")]
    taken = [line for line in progress.lines if "taken over" in line]
    assert taken == expected
    for stage in ("cam", "seeds"):
        assert files_of(tmp_path / "run" / stage) == files_of(finished_run / stage)
        assert f"{stage}: up to date" in progress.lines
    assert not any(path.name.startswith(".") for path in (tmp_path / "run").iterdir())


def test_a_stage_of_other_settings_is_not_taken_over(
    finished_run: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    progress = Notes()
    out = tmp_path / "run"
    _train(tiny_images, out, "seed=1", stages=["cam"], reuse=[finished_run], progress=progress)
    assert not any("taken over" in line for line in progress.lines)
    assert read_stage(out / "cam")["settings"]["seed"] == 1


def test_reuse_of_what_is_no_run(tiny_images: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`reuse`: '.*' is no run: give a folder"):
        _train(tiny_images, tmp_path / "run", reuse=[tmp_path])
    assert not (tmp_path / "run").exists()
