"""The stage of instances: what it stores, what it measures, and the same from a run's networks."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from job_specs import spec_of
from numpy.typing import NDArray
from tiny_run import tiny_recipe

from wsss.errors import ArtifactError, ConfigError, DataError
from wsss.runtime.bulk.plan import DEFAULT_TILE_PIXELS, Settings
from wsss.runtime.bulk.run import label_in_bulk
from wsss.runtime.bulk.tiling import TiledPredictor
from wsss.runtime.instances.files import CLASSES, OBJECTS
from wsss.runtime.instances.grouping import boundary_instances, cam_instances, group_instances
from wsss.runtime.instances.instance_map import InstanceMap
from wsss.runtime.instances.settings import InstanceSettings
from wsss.runtime.io.image_io import read_image, read_label_map
from wsss.runtime.io.progress import SILENT
from wsss.runtime.io.score_maps import ScoreMaps, load_score_maps, save_score_maps
from wsss.training.data.image_set import ImageSet
from wsss.training.data.readers import read_image_set
from wsss.training.demo.run import write_demo_scenes
from wsss.training.demo.scenes import draw_touching_scene
from wsss.training.engine.run import Run, read_stage
from wsss.training.evaluation.instance_predictions import PairPredictions
from wsss.training.methods.irnet.instances import measure_instances as measure_stage
from wsss.training.methods.irnet.instances import write_pair
from wsss.training.methods.irnet.network import IRNet, image_maps
from wsss.training.methods.shared.walk_stage import walk_settings
from wsss.training.pipeline import train
from wsss.training.predict import run_predictor as predictor_module
from wsss.training.predict.measure import measure_instances
from wsss.training.predict.run_predictor import RunPredictor

CPU = torch.device("cpu")
THRESHOLD = 0.2
RECIPE = tiny_recipe(
    "cam.train.epochs=8",
    "cam.scales=[1.0, 1.5]",
    "cam.train.augmentation.crop_size=65",
    "instances.centroid_radius=2.5",
    "instances.steps=50",
    f"instances.threshold={THRESHOLD}",
    "instances.min_area=0.02",
    "instances.fragments=drop",
    method="irnet",
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    root = tmp_path_factory.mktemp("scenes") / "data"
    write_demo_scenes(root, train=6, val=0, seed=0, size=(64, 80), draw=draw_touching_scene)
    return read_image_set(root)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, scenes: ImageSet) -> Path:
    """A run up to its instances; not to be changed."""
    out = tmp_path_factory.mktemp("instances") / "run"
    train(RECIPE, scenes, out, stages=("cam", "seeds", "irnet", "instances"), device="cpu")
    return out


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Scenes that the run was not trained on."""
    root = tmp_path_factory.mktemp("unseen") / "data"
    write_demo_scenes(root, train=3, val=8, seed=1, size=(64, 80), draw=draw_touching_scene)
    return read_image_set(root)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def _equal(one: InstanceMap, other: InstanceMap) -> bool:
    arrays = ((one.ids, other.ids), (one.classes, other.classes), (one.scores, other.scores))
    return all(np.array_equal(a, b) for a, b in arrays)


def test_stored_pairs_are_what_the_runtime_groups(run: Path, scenes: ImageSet) -> None:
    predictor = RunPredictor(run, "cpu")
    network = predictor.network("irnet", IRNet)
    stored = PairPredictions(run / "instances", scenes)
    settings = InstanceSettings(50, 2.5, THRESHOLD, 0.02, "drop")
    found = 0
    for sample in scenes.samples:
        image = read_image(sample.image_path)
        boundary, displacement = image_maps(
            network, image, align="corners", device=predictor.device
        )
        assert displacement is not None
        maps = load_score_maps(run / "cam" / "scores" / f"{sample.name}.npz")
        walk = walk_settings(RECIPE)
        expected = group_instances(maps, boundary[0], displacement[0], walk, settings)
        assert _equal(stored.predict(sample), expected)
        classes = read_label_map(run / "instances" / CLASSES / f"{sample.name}.png")
        assert np.array_equal(classes, expected.label_map())
        assert set(expected.classes.tolist()) <= set(sample.labels or ())
        found += len(expected)
    assert found >= len(scenes.samples)


def test_figures_are_those_of_each_step_by_itself(run: Path, scenes: ImageSet) -> None:
    figures = read_stage(run / "instances")["figures"]
    names = ("cam_ap50", "cam_ap70", "boundary_ap50", "boundary_ap70", "ap50", "ap70")
    assert figures.keys() == {"images", *names}
    report = measure_instances(run / "instances", scenes, split="train")
    assert (figures["ap50"], figures["ap70"]) == (report.ap50, report.ap70)
    assert figures["images"] == report.images == 6


def test_perfect_cams_and_instances_get_what_they_deserve(copy: Path, scenes: ImageSet) -> None:
    """Masks in place of CAMs find the objects that touch none of their class; truth finds all."""
    alone = num_objects = 0
    for sample in scenes.samples:
        mask, truth = sample.load_mask(), sample.load_instances()
        labels = np.array(sample.labels, np.int64)
        planes = (mask == (labels + 1)[:, None, None]).astype(np.float32)
        maps = ScoreMaps(labels, planes, (mask.shape[0], mask.shape[1]))
        save_score_maps(copy / "cam" / "scores" / f"{sample.name}.npz", maps)
        perfect = InstanceMap(truth.ids, truth.classes, np.ones(len(truth), np.float32))
        write_pair(copy / "instances", sample.name, perfect)
        num_objects += len(truth)
        alone += sum(_is_component(mask, truth.ids == row + 1) for row in range(len(truth)))
    figures = measure_stage(
        Run(copy, RECIPE, scenes, None, None, None, CPU, SILENT), copy / "instances"
    )
    assert 0 < alone < num_objects
    assert figures["ap50"] == figures["ap70"] == 100
    assert 0 < figures["cam_ap70"] <= figures["cam_ap50"] < 100


def _is_component(mask: NDArray[np.uint8], inside: NDArray[np.bool_]) -> bool:
    label = mask[inside][0]
    _, parts = cv2.connectedComponents((mask == label).astype(np.uint8), connectivity=4)
    return np.array_equal(parts == parts[inside][0], inside)


def test_the_threshold_of_cams_moves_their_figure_alone(copy: Path, scenes: ImageSet) -> None:
    """CAMs are 1 on their classes and 0.5 elsewhere: thresholds around 0.5 tell them apart."""

    def figures_at(threshold: float) -> dict[str, float]:
        recipe = tiny_recipe(
            "cam.train.epochs=8",
            "cam.scales=[1.0, 1.5]",
            "cam.train.augmentation.crop_size=65",
            "instances.centroid_radius=2.5",
            "instances.steps=50",
            f"instances.threshold={THRESHOLD}",
            "instances.min_area=0.02",
            "instances.fragments=drop",
            f"cam.threshold={threshold}",
            method="irnet",
        )
        stages = ("cam", "seeds", "irnet", "instances")
        return train(recipe, scenes, copy, stages=stages, device="cpu").figures["instances"]

    for sample in scenes.samples:
        mask, labels = sample.load_mask(), np.array(sample.labels, np.int64)
        planes = np.where(mask == (labels + 1)[:, None, None], 1, 0.5).astype(np.float32)
        maps = ScoreMaps(labels, planes, (mask.shape[0], mask.shape[1]))
        save_score_maps(copy / "cam" / "scores" / f"{sample.name}.npz", maps)
    path = copy / "instances" / OBJECTS / f"{scenes.samples[0].name}.png"
    made = path.stat().st_mtime_ns
    before = figures_at(0.3)
    measured = read_stage(copy / "instances")["measured"]
    after = figures_at(0.7)
    assert path.stat().st_mtime_ns == made
    assert {key for key in before if before[key] != after[key]} == {"cam_ap50", "cam_ap70"}
    assert after["cam_ap50"] > before["cam_ap50"]
    assert read_stage(copy / "instances")["measured"] != measured


def test_a_run_finds_the_instances_of_any_image(run: Path, scenes: ImageSet) -> None:
    predictor = RunPredictor(run, "cpu")
    network = predictor.network("irnet", IRNet)
    image = read_image(scenes.samples[0].image_path)[:50]
    found = predictor.instances(image, [0, 3])
    boundary, displacement = image_maps(network, image, align="corners", device=predictor.device)
    assert displacement is not None
    maps, walk = predictor.score_maps(image, [0, 3], "cam"), walk_settings(RECIPE)
    settings = InstanceSettings(50, 2.5, THRESHOLD, 0.02, "drop")
    expected = group_instances(maps, boundary[0], displacement[0], walk, settings)
    assert found.ids.shape == image.shape[:2] and len(found)
    assert _equal(found, expected)
    # The three ways differ, so that comparing them says something.
    assert not np.array_equal(found.ids > 0, cam_instances(maps, "corners", settings).ids > 0)
    assert len(boundary_instances(maps, boundary[0], walk, settings))
    assert len(predictor.instances(image, [])) == 0


@pytest.mark.parametrize("labels", [None, (0, 3)])
def test_labels_and_instances_share_their_maps(
    run: Path, scenes: ImageSet, labels: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One set of CAMs; IRNet sees the image and its mirror once each."""
    predictor = RunPredictor(run, "cpu")
    predictor.thresholds = 0.1  # the classifier has not learnt enough for its own
    images = [read_image(sample.image_path) for sample in scenes.samples[:2]]
    expected = [predictor.predict_one(image, labels, "walk") for image in images]
    objects = [predictor.instances(image, labels) for image in images]
    assert any(map(len, objects))

    threshold = "0.1" if labels is None else None
    spec = spec_of(run, "walk", has_labels=labels is not None, threshold=threshold, instances=True)
    calls: Counter[str] = Counter()
    activation = predictor_module.image_activation

    def counted(*arguments: Any) -> Any:
        calls["activation"] += 1
        return activation(*arguments)

    monkeypatch.setattr(predictor_module, "image_activation", counted)
    opened = spec.open(None)
    assert isinstance(opened, RunPredictor)
    backbone = opened.network("irnet", IRNet).backbone
    backbone.register_forward_hook(lambda *_: calls.update(["passes"]))
    as_jobs = TiledPredictor(opened, spec, DEFAULT_TILE_PIXELS)
    answers = as_jobs.predict(images, [labels] * len(images))
    assert calls == {"activation": len(images), "passes": 2 * len(images)}
    for answer, single, instances in zip(answers, expected, objects, strict=True):
        assert np.array_equal(answer.label, single.label) and answer.change == single.change
        assert answer.instances is not None and _equal(answer.instances, instances)


@pytest.mark.parametrize("ways", [{"crf": True}, {"mode": "labels"}, {"mode": "cam"}])
def test_instances_go_with_the_plain_walk_alone(run: Path, ways: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no dense CRF|requires `mode` walk without the dense"):
        spec_of(run, **{"mode": "walk", **ways}, instances=True)


def test_a_run_is_measured_by_what_label_makes_of_it(
    run: Path, unseen: ImageSet, tmp_path: Path
) -> None:
    """A job's instances taken as the truth: if told the labels, the run finds them again."""
    devkit, job = Path(shutil.copytree(unseen.root, tmp_path / "devkit")), tmp_path / "job"
    samples = unseen.select("val").samples
    rows = ["file,labels"]
    for sample in samples:
        names = (unseen.classes[index] for index in sample.labels or ())
        rows.append(f"{sample.image_path.name},{';'.join(names)}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    label_in_bulk(
        [sample.image_path for sample in samples],
        spec_of(run, "walk", has_labels=True, instances=True),
        job,
        settings=Settings(("instances",)),
        labels_path=tmp_path / "labels.csv",
        workers=0,
    )
    for folder in (OBJECTS, CLASSES):
        shutil.copytree(job / folder, devkit / folder, dirs_exist_ok=True)
    images = read_image_set(devkit)
    told = measure_instances(run, images, device="cpu")
    of_job = measure_instances(job, images, split="val")
    expected = replace(of_job, predictions=f"instances of run {run}")
    assert told.to_json() == expected.to_json()
    assert told.list_name == "val" and told.images == 8 and told.image_labels_used
    assert told.ap > 50 and told.predicted >= 5
    found = measure_instances(run, images, use_image_labels=False, device="cpu")
    assert found.image_labels_used is False and found.ap < told.ap
    other = measure_instances(run, images, split="train", device="cpu")
    assert (other.list_name, other.images) == ("train", 3) and other.ap < told.ap


def test_a_run_is_not_measured_on_images_that_do_not_fit(run: Path, unseen: ImageSet) -> None:
    samples = tuple(replace(sample, labels=None) for sample in unseen.samples)
    with pytest.raises(DataError, match="has no image-level labels"):
        measure_instances(run, replace(unseen, samples=samples), device="cpu")
    with pytest.raises(ArtifactError, match="knows the classes"):
        measure_instances(run, replace(unseen, classes=unseen.classes[::-1]), device="cpu")
    samples = tuple(replace(sample, instances=None) for sample in unseen.samples)
    with pytest.raises(DataError, match="8 of them without instance masks"):
        measure_instances(run, replace(unseen, samples=samples), device="cpu")


def test_without_displacements_there_are_no_instances(copy: Path, scenes: ImageSet) -> None:
    recipe = tiny_recipe("cam.train.epochs=8", "irnet.displacement=false", method="irnet")
    stages = ("cam", "seeds", "irnet", "instances")
    result = train(recipe, scenes, copy, stages=stages, device="cpu")
    assert result.figures["instances"] == {}
    assert not (copy / "instances" / OBJECTS).exists()
    with pytest.raises(ConfigError, match=r"has no instances: train a recipe of method irnet with"):
        RunPredictor(copy, "cpu").instances(read_image(scenes.samples[0].image_path), [0])


def test_sets_without_objects_are_not_measured(copy: Path, scenes: ImageSet) -> None:
    path = copy / "instances" / OBJECTS / f"{scenes.samples[0].name}.png"
    made = path.stat().st_mtime_ns
    samples = tuple(replace(sample, instances=None) for sample in scenes.samples)
    stages = ("cam", "seeds", "irnet", "instances")
    result = train(RECIPE, replace(scenes, samples=samples), copy, stages=stages, device="cpu")
    assert result.figures["instances"] == {}
    assert path.stat().st_mtime_ns == made
