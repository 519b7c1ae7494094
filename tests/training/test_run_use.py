"""What a finished run is good for: labels for any image, figures, and folders of labels."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from job_specs import spec_of
from synthetic_jobs import records_of
from tiny_run import CLASSES, NUM_TRAIN, NUM_VAL, copy_run

from wsss.errors import ArtifactError, ConfigError
from wsss.runtime.bulk.job import read_job
from wsss.runtime.bulk.run import label_in_bulk
from wsss.runtime.io.image_io import read_image, read_label_map
from wsss.runtime.io.score_maps import load_score_maps
from wsss.runtime.predictor import AnyOf
from wsss.runtime.refine.pseudo_labels import walk_change
from wsss.training.data.image_set import ImageSet
from wsss.training.engine.run import read_stage
from wsss.training.predict.measure import evaluate
from wsss.training.predict.run_predictor import CLASS_THRESHOLD, RunPredictor


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run that may be changed."""
    return copy_run(finished_run, tmp_path / "run")


def test_a_predictor_labels_any_image(finished_run: Path, tiny_images: ImageSet) -> None:
    predictor = RunPredictor(finished_run, "cpu")
    assert predictor.classes == CLASSES
    image = read_image(tiny_images.select("val").samples[0].image_path)
    for kind in ("cam", "walk", "labels", "segmenter"):
        for labels in (None, (1,), ()):
            if kind == "segmenter" and labels is not None:
                with pytest.raises(ConfigError, match="takes no image-level classes: leave them"):
                    predictor.predict_one(image, labels, kind)
                continue
            found = predictor.predict_one(image, labels, kind)
            assert (found.label.shape, found.label.dtype) == (image.shape[:2], np.uint8)
            allowed = {0, 1, 2} if labels is None else {0, *(2,) * len(labels)}
            assert set(np.unique(found.label).tolist()) <= allowed
            assert labels is None or found.classes == labels
    predictor.thresholds = 0.0
    found = predictor.find_classes(image)
    assert found == [0, 1]
    predictor.thresholds = 1.1
    assert predictor.find_classes(image) == []
    predictor.thresholds = CLASS_THRESHOLD
    assert predictor.predict_one(image[:1, :1]).label.shape == (1, 1)


def test_of_classes_that_may_be_there_the_classifier_chooses(
    finished_run: Path, tiny_images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = RunPredictor(finished_run, "cpu")
    image = read_image(tiny_images.select("val").samples[0].image_path)
    for found in ([], [0], [1], [0, 1]):
        monkeypatch.setattr(predictor, "find_classes", lambda image, found=found: found)
        maps = predictor.score_maps(image, AnyOf((1,)), "walk")
        assert maps.classes.tolist() == [index for index in found if index == 1]


def test_a_predictor_repeats_the_run(finished_run: Path, tiny_images: ImageSet) -> None:
    """The stored CAMs are half precision, so that labels may differ in a pixel."""
    predictor = RunPredictor(finished_run, "cpu")
    for sample in tiny_images.select("train").samples[:4]:
        image = read_image(sample.image_path)
        stored = load_score_maps(finished_run / "cam" / "scores" / f"{sample.name}.npz")
        maps = predictor.score_maps(image, sample.labels, "cam")
        np.testing.assert_allclose(maps.scores, stored.scores, atol=1e-3)
        labels = read_label_map(finished_run / "labels" / f"{sample.name}.png")
        assert (predictor.recipe_label(image, sample.labels, "labels") != labels).mean() < 0.01


def test_a_predictor_needs_a_trained_run(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is no run: expected a folder with recipe\.toml"):
        RunPredictor(tmp_path)
    shutil.rmtree(copy / "segmenter")
    image = np.zeros((40, 48, 3), np.uint8)
    with pytest.raises(ArtifactError, match="has no trained 'segmenter' network"):
        RunPredictor(copy, "cpu").predict_one(image, mode="segmenter")
    for stage in ("cam", "affinity"):
        shutil.rmtree(copy / stage)
    with pytest.raises(ArtifactError, match="has no trained network yet: finish `wsss train`"):
        RunPredictor(copy, "cpu")


@pytest.mark.parametrize(
    ("stage", "other", "kind", "message"),
    [
        ("cam", "segmenter", "cam", "expected CamClassifier"),
        ("affinity", "cam", "walk", "expected AffinityNet"),
        ("segmenter", "cam", "segmenter", "expected Segmenter"),
    ],
)
def test_a_network_of_another_kind_is_refused(
    copy: Path, stage: str, other: str, kind: str, message: str
) -> None:
    shutil.copy(copy / other / "weights.safetensors", copy / stage / "weights.safetensors")
    with pytest.raises(ArtifactError, match=message):
        classes = None if kind == "segmenter" else (0,)
        image = np.zeros((40, 48, 3), np.uint8)
        RunPredictor(copy, "cpu").predict_one(image, classes, kind)


@pytest.mark.parametrize(
    ("stage", "use_labels", "used", "background"),
    [
        ("cam", True, True, "threshold 0.2"),
        ("walk", True, True, "threshold 0.3"),
        ("labels", False, False, "in the predictions"),
        ("segmenter", True, False, "in the predictions"),
    ],
)
def test_measuring_a_run_says_what_was_measured(
    finished_run: Path,
    tiny_images: ImageSet,
    stage: str,
    use_labels: bool,
    used: bool,
    background: str,
) -> None:
    report = evaluate(
        finished_run, tiny_images, mode=stage, use_image_labels=use_labels, device="cpu"
    )
    assert (report.list_name, report.images) == ("val", NUM_VAL)
    assert (report.image_labels_used, report.background) == (used, background)
    assert report.predictions == f"{stage} of run {finished_run}"
    assert list(report.iou) == ["background", *CLASSES]
    if stage == "segmenter":
        assert report.miou == read_stage(finished_run / "segmenter")["figures"]["miou"]


def test_measuring_folders_of_a_run(finished_run: Path, tiny_images: ImageSet) -> None:
    for folder, key, background in (
        ("cam", "miou", "threshold 0.2"),
        ("cam/scores", "miou", "threshold 0.2"),
        ("labels/scores", "walk_miou", "threshold 0.3"),
        ("labels", "miou", "in the predictions"),
    ):
        report = evaluate(finished_run / folder, tiny_images, split="train")
        assert (report.list_name, report.images) == ("train", NUM_TRAIN)
        assert (report.image_labels_used, report.background) == (True, background)
        figures = read_stage(finished_run / folder.split("/")[0])["figures"]
        assert report.miou == figures[key], folder


def test_measuring_with_another_threshold_or_a_sweep(
    finished_run: Path, tiny_images: ImageSet
) -> None:
    folder = finished_run / "cam"
    report = evaluate(folder, tiny_images, split="train", threshold=0.999)
    assert report.background == "threshold 0.999"
    swept = evaluate(folder, tiny_images, split="train", sweep=True)
    assert swept.background.endswith(", best of a sweep on this list")
    for place, mode in ((finished_run / "labels", None), (finished_run, "segmenter")):
        with pytest.raises(ConfigError, match="label maps, which no threshold changes"):
            evaluate(place, tiny_images, split="train", mode=mode, sweep=True)
    with pytest.raises(ConfigError, match="is no run, and a mode chooses what a run predicts"):
        evaluate(finished_run / "labels", tiny_images, split="train", mode="walk")
    assert swept.miou == max(row["miou"] for row in swept.sweep) >= report.miou


def test_measuring_what_is_not_there(
    finished_run: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"unknown mode 'seeds': run .* has walk, labels"):
        evaluate(finished_run, tiny_images, mode="seeds")
    with pytest.raises(ArtifactError, match="knows the classes disc, bar; the image set has a"):
        evaluate(finished_run, replace(tiny_images, classes=("a", "b")))
    with pytest.raises(ArtifactError, match=r"no prediction .*make the missing ones"):
        evaluate(finished_run / "labels", tiny_images)
    with pytest.raises(ArtifactError, match="no such folder"):
        evaluate(tmp_path / "none", tiny_images)


def test_labelling_keeps_what_is_done_and_lists_what_failed(
    finished_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for index in range(3):
        shutil.copy(tiny_data / "JPEGImages" / f"val_{index}.png", photos / f"{index}.png")
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    model = spec_of(finished_run)
    first = label_in_bulk([photos], model, out)
    assert (first.images, first.labelled, first.kept, first.failed) == (4, 3, 0, 1)
    assert str(photos / "broken.png") in (out / "failures.csv").read_text()
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("masks/*.png")}
    assert sorted(times) == ["0.png", "1.png", "2.png"]
    second = label_in_bulk([photos], model, out)
    assert (second.labelled, second.kept, second.failed) == (0, 3, 1)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("masks/*.png")} == times
    with pytest.raises(ConfigError, match="holds labels made otherwise"):
        label_in_bulk([photos], spec_of(finished_run, "walk"), out)
    expected = RunPredictor(finished_run, "cpu").predict_one(read_image(photos / "0.png")).label
    assert np.array_equal(read_label_map(out / "masks" / "0.png"), expected)


@pytest.mark.parametrize(
    ("kind", "walks"), [("cam", False), ("walk", True), ("labels", True), ("segmenter", False)]
)
def test_labelling_records_what_the_walk_changed(
    finished_run: Path, tiny_data: Path, tmp_path: Path, kind: str, walks: bool
) -> None:
    images = [tiny_data / "JPEGImages" / f"val_{index}.png" for index in range(NUM_VAL)]
    label_in_bulk(images, spec_of(finished_run, kind), tmp_path / "out")
    changes = [record.change for record in records_of(tmp_path / "out")]
    assert len(changes) == NUM_VAL
    if not walks:
        assert changes == [None] * NUM_VAL
        return
    predictor = RunPredictor(finished_run, "cpu")
    settings = predictor.method.affinity.walk_settings(predictor.recipe)
    for path, change in zip(images, changes, strict=True):
        cams, walked = (
            predictor.score_maps(read_image(path), None, way) for way in ("cam", "walk")
        )
        assert change == pytest.approx(walk_change(cams, walked, settings), abs=1e-6)
    assert max(change or 0 for change in changes) > 0


def test_labelling_with_image_labels(finished_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    image, table = tiny_data / "JPEGImages" / "val_0.png", tmp_path / "labels.csv"
    table.write_text("file,labels\nval_0.png,bar\n")
    model = spec_of(finished_run, has_labels=True)
    label_in_bulk([image], model, tmp_path / "out", labels_path=table)
    label_map = read_label_map(tmp_path / "out" / "masks" / "val_0.png")
    assert set(np.unique(label_map).tolist()) <= {0, 2}
    settings = read_job(tmp_path / "out")["settings"]["model"]
    assert (settings["mode"], settings["crf"]) == ("walk", False)
    with pytest.raises(ConfigError, match="takes no image-level labels"):
        spec_of(finished_run, "segmenter", has_labels=True)
    with pytest.raises(ConfigError, match=r"unknown mode 'magic': run .* has walk, labels"):
        spec_of(finished_run, "magic")
