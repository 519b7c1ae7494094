"""What the commands do and print where nothing is wrong, and where some images are."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Outcome, break_file, picture, wsss
from tiny_run import CLASSES, NUM_TRAIN, NUM_VAL, STAGES, files_of

from wsss.runtime.io.image_io import read_image, read_label_map
from wsss.training.predict.run_predictor import RunPredictor
from wsss.training.recipes import load_recipe

LABELS = ("background", *CLASSES)


def only_json(outcome: Outcome) -> dict[str, object]:
    """What `--json` printed, which is one object and nothing else."""
    printed = json.loads(outcome.succeeded().out)
    assert isinstance(printed, dict)
    return printed


def stored(folder: Path) -> dict[str, bytes]:
    """What a labelling job gave."""
    return files_of(folder, "masks/**/*.png", "job.json", "failures.csv")


# wsss data


def test_data(tiny_data: Path) -> None:
    printed = only_json(wsss("data", tiny_data, "--json"))
    assert printed["classes"] == list(CLASSES)
    assert printed["splits"] == {"train": NUM_TRAIN, "val": NUM_VAL}
    assert printed["masks"] == printed["images"] == NUM_TRAIN + NUM_VAL
    text = wsss("data", tiny_data).succeeded().out
    assert f"{NUM_TRAIN + NUM_VAL} images, 2 classes" in text and str(tiny_data) in text


# wsss train


def test_train(trained: tuple[Path, Outcome]) -> None:
    run, outcome = trained
    printed = only_json(outcome)
    assert printed["run"] == str(run)
    assert printed["report"] == str(run / "report.html")
    assert (run / "report.html").is_file()
    figures = printed["figures"]
    assert isinstance(figures, dict) and tuple(figures) == STAGES
    assert 0 <= figures["labels"]["miou"] <= 100


def test_train_with_changes_of_a_shipped_recipe(tiny_data: Path, tmp_path: Path) -> None:
    settings = [
        "cam.train.epochs=1",
        "cam.train.batch_size=5",
        "cam.train.augmentation.crop_size=33",
        "cam.scales=[0.5]",
        "affinity.train.batch_size=5",
        "segmenter.train.batch_size=5",
    ]
    arguments = [word for setting in settings for word in ("--set", setting)]
    run = tmp_path / "run"
    command = ["train", "demo", "--data", tiny_data, "--out", run, "--stages", "cam", *arguments]
    outcome = wsss(*command).succeeded()
    assert outcome.out.splitlines()[-1] == f"report: {run / 'report.html'}"
    recipe = (run / "recipe.toml").read_text()
    assert "crop_size = 33" in recipe and "scales = [0.5]" in recipe
    assert len((run / "cam" / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (run / "seeds").exists()
    assert "cam: up to date" in wsss(*command).succeeded().err


# wsss eval


@pytest.mark.parametrize("stage", ["segmenter", "cam", "walk", "labels"])
def test_eval_of_a_run(stage: str, run: Path, tiny_data: Path) -> None:
    printed = only_json(wsss("eval", run, "--data", tiny_data, "--mode", stage, "--json"))
    assert printed["list_name"] == "val"
    assert printed["images"] == NUM_VAL
    assert printed["image_labels_used"] is (stage != "segmenter")
    recipe = load_recipe(run / "recipe.toml")
    rules = {
        "cam": f"threshold {recipe.cam.threshold:g}",
        "walk": f"threshold {recipe.walk.threshold:g}",
    }
    assert printed["background"] == rules.get(stage, "in the predictions")
    iou = printed["iou"]
    assert isinstance(iou, dict) and tuple(iou) == LABELS
    assert printed["miou"] == pytest.approx(np.mean(list(iou.values())), abs=1e-3)


def test_eval_without_image_labels(run: Path, tiny_data: Path) -> None:
    arguments = ("--data", tiny_data, "--mode", "cam", "--no-image-labels", "--json")
    assert only_json(wsss("eval", run, *arguments))["image_labels_used"] is False


def test_eval_of_a_perfect_folder(tiny_data: Path) -> None:
    outcome = wsss("eval", tiny_data / "SegmentationClass", "--data", tiny_data).succeeded()
    assert "mIoU 100.00 %" in outcome.out and "image labels unknown" in outcome.out
    assert f"list all: {NUM_TRAIN + NUM_VAL} images" in outcome.out


def test_eval_sweep(run: Path, tiny_data: Path) -> None:
    folder = run / "cam" / "scores"
    arguments = ("eval", folder, "--data", tiny_data, "--split", "train", "--sweep", "--json")
    printed = only_json(wsss(*arguments))
    rows = printed["sweep"]
    assert isinstance(rows, list)
    assert [row["threshold"] for row in rows] == [round(0.05 * step, 2) for step in range(1, 20)]
    best = max(rows, key=lambda row: row["miou"])
    assert printed["miou"] == best["miou"]
    assert printed["background"] == f"threshold {best['threshold']:g}, best of a sweep on this list"


# wsss label


def test_label_by_the_segmenter(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    images, out = tiny_data / "JPEGImages", tmp_path / "out"
    arguments = ("label", images, "--model", run, "--out", out)
    printed = only_json(wsss(*arguments, "--json"))
    count = NUM_TRAIN + NUM_VAL
    done = {"images": count, "labelled": count, "kept": 0, "failed": 0, "remaining": 0}
    assert printed == {"out": str(out), **done}
    assert "Labelling job, complete" in (out / "report.html").read_text(encoding="utf-8")
    for path in images.iterdir():
        mask = read_label_map(tiny_data / "SegmentationClass" / path.name)
        assert read_label_map(out / "masks" / path.name).shape == mask.shape
    before = stored(out)
    printed = only_json(wsss(*arguments, "--json"))
    assert printed["kept"] == count and printed["labelled"] == 0
    assert stored(out) == before


def test_label_by_given_labels_equals_the_run(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Pseudo labels of training images are those that the run itself has made."""
    out = tmp_path / "out"
    labels = ("--labels", tiny_data / "labels.csv", "--mode", "walk")
    wsss("label", tiny_data / "JPEGImages", "--model", run, "--out", out, *labels).succeeded()
    made = sorted((run / "labels").glob("*.png"))
    assert len(made) == NUM_TRAIN
    differing = [read_label_map(path) != read_label_map(out / "masks" / path.name) for path in made]
    # The run stores its scores as float16, so that a pixel on the edge of two labels may tip.
    assert sum(map(np.sum, differing)) <= 0.001 * sum(map(np.size, differing))


def test_label_mirrors_the_tree_and_keeps_suffixes_apart(run: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "deep" / "er").mkdir(parents=True)
    for name in ("a.png", "a.webp", "deep/er/b.jpg"):
        picture().save(photos / name)
    labels = tmp_path / "labels.csv"
    labels.write_text("file,labels\na.png,disc\na.webp,\ndeep/er/b.jpg,bar\n")
    out = photos / "out"  # inside of what is searched, and yet no input of the second call
    for kept in (0, 3):
        command = ("label", photos, "--model", run, "--out", out, "--labels", labels, "--json")
        assert only_json(wsss(*command))["kept"] == kept
    made = stored(out).keys() - {"job.json"}
    assert made == {f"masks/{name}.png" for name in ("a.png", "a.webp", "deep/er/b")}
    assert not read_label_map(out / "masks" / "a.webp.png").any()


def test_label_among_broken_images(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(tiny_data / "JPEGImages", images)
    whole = (images / "val_1.png").read_bytes()
    broken = {"train_0": "corrupt", "train_5": "zero-byte", "val_1": "truncated"}
    for name, how in broken.items():
        break_file(images / f"{name}.png", how)
    command = ("label", images, "--model", run, "--out", out, "--json")
    count = NUM_TRAIN + NUM_VAL
    outcome = wsss(*command)
    assert outcome.code == 3
    printed = json.loads(outcome.out)
    assert (printed["labelled"], printed["failed"]) == (count - 3, 3)
    with (out / "failures.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "code", "reason"]
    assert [row[0] for row in rows[1:]] == [str(images / f"{name}.png") for name in sorted(broken)]
    assert [row[1] for row in rows[1:]] == ["not-an-image", "empty", "truncated"]
    assert all(Path(path).name in reason for path, _, reason in rows[1:])

    (images / "val_1.png").write_bytes(whole)
    outcome = wsss(*command)  # they are not tried again unless that is asked for
    printed = json.loads(outcome.out)
    assert outcome.code == 3
    assert (printed["kept"], printed["labelled"], printed["failed"]) == (count - 3, 0, 3)
    printed = json.loads(wsss(*command, "--retry-failed").out)
    assert (printed["kept"], printed["labelled"], printed["failed"]) == (count - 3, 1, 2)
    for name in ("train_0", "train_5"):
        (images / f"{name}.png").write_bytes(whole)
    assert only_json(wsss(*command, "--retry-failed"))["labelled"] == 2
    assert not (out / "failures.csv").exists()
    for path in images.iterdir():
        assert read_label_map(out / "masks" / path.name).shape == read_image(path).shape[:2]


def test_interrupted_labelling(
    run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    arguments = ("label", tiny_data / "JPEGImages", "--model", run)
    wsss(*arguments, "--out", whole).succeeded()

    out, calls, label = tmp_path / "out", 0, RunPredictor.predict_equal

    def interrupted_label(self: RunPredictor, *details: object, **settings: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 11:  # of a second unit
            raise KeyboardInterrupt
        return label(self, *details, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(RunPredictor, "predict_equal", interrupted_label)
        line = wsss(*arguments, "--out", out).line(130)
    assert "interrupted" in line
    finished = stored(out)
    assert 8 + 1 <= len(finished) < NUM_TRAIN + NUM_VAL + 1  # and job.json
    assert finished.items() <= stored(whole).items()
    printed = only_json(wsss(*arguments, "--out", out, "--json"))
    assert (printed["kept"], printed["labelled"]) == (8, NUM_TRAIN + NUM_VAL - 8)
    assert stored(out) == stored(whole)


def test_error_that_is_not_about_an_image_stops(
    run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsss.errors import ArtifactError, ShapeError

    images = tiny_data / "JPEGImages"
    for error, code in ((ArtifactError("no network"), 1), (ShapeError("too small"), 3)):

        def fail(
            self: RunPredictor, *details: object, error: Exception = error, **settings: object
        ) -> None:
            raise error

        monkeypatch.setattr(RunPredictor, "predict_equal", fail)
        out = tmp_path / type(error).__name__
        outcome = wsss("label", images, "--model", run, "--out", out)
        assert outcome.code == code
        assert ("no network" in outcome.err) == (code == 1)
        assert (out / "failures.csv").exists() == (code == 3)


def test_label_overwrites_where_told(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(tiny_data / "JPEGImages", images)
    arguments = ("label", images, "--model", run, "--out", out)
    wsss(*arguments).succeeded()
    by_segmenter = stored(out)
    assert "--overwrite" in wsss(*arguments, "--mode", "cam").line()
    assert stored(out) == by_segmenter

    (images / "train_0.png").unlink()  # whose old label must not stay among the new ones
    wsss(*arguments, "--mode", "cam", "--overwrite").succeeded()
    by_cam = stored(out)
    assert by_cam.keys() == by_segmenter.keys() - {"masks/train_0.png"}
    assert by_cam["job.json"] != by_segmenter["job.json"]

    break_file(images / "train_1.png", "truncated")
    outcome = wsss(*arguments, "--mode", "cam", "--overwrite")
    assert outcome.code == 3
    assert stored(out).keys() == by_cam.keys() - {"masks/train_1.png"} | {"failures.csv"}


def test_killed_before_a_manifest(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    """An empty output folder is as good as none."""
    (tmp_path / "out").mkdir()
    image = tiny_data / "JPEGImages" / "val_0.png"
    wsss("label", image, "--model", run, "--out", tmp_path / "out").succeeded()
    assert stored(tmp_path / "out").keys() == {"job.json", "masks/val_0.png"}
