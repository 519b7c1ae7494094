"""`wsss eval --calibrate` and `--coverage`: what they print and write."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import wsss
from tiny_run import CLASSES, NUM_TRAIN, NUM_VAL, TRAIN_NAMES

from wsss.runtime.io.image_io import encode_grey, read_label_map


def test_calibrate(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "new" / "thresholds.json"
    arguments = ("eval", run, "--data", tiny_data, "--calibrate", "--json")
    outcome = wsss(*arguments, "--split", "train", "--out", chosen)
    found = json.loads(outcome.succeeded().out)
    assert (found["list_name"], found["images"]) == ("train", NUM_TRAIN)
    assert found["learnt_from"] is True
    # Each of the two classes is in 6 images of 10: too few lack it.
    assert [(each["name"], each["images"]) for each in found["classes"]] == [
        (name, 6) for name in CLASSES
    ]
    assert {each["note"] for each in found["classes"]} == {"kept: 4 images lack it, fewer than 5"}
    assert json.loads(chosen.read_text()) == dict.fromkeys(CLASSES, 0.5)
    found = json.loads(wsss(*arguments).succeeded().out)
    assert (found["list_name"], found["images"]) == ("val", NUM_VAL)
    assert found["learnt_from"] is False
    assert "exists: give --out another name" in wsss(*arguments, "--out", chosen).line()


def test_calibrate_in_words(run: Path, tiny_data: Path) -> None:
    arguments = ("eval", run, "--data", tiny_data, "--calibrate", "--split", "train")
    printed = wsss(*arguments).succeeded().out
    assert "The classifier was trained on images of this list" in printed
    for name in CLASSES:
        assert name in printed


@pytest.fixture
def labelled(tiny_data: Path, tmp_path: Path) -> Path:
    """A job that knew the truth and is half sure of the last image alone."""
    out = tmp_path / "job"
    for number, name in enumerate(TRAIN_NAMES):
        mask = read_label_map(tiny_data / "SegmentationClass" / f"{name}.png")
        (out / "masks").mkdir(parents=True, exist_ok=True)
        (out / "confidence").mkdir(exist_ok=True)
        shutil.copy(tiny_data / "SegmentationClass" / f"{name}.png", out / "masks")
        sure = 128 if number == NUM_TRAIN - 1 else 255
        (out / "confidence" / f"{name}.png").write_bytes(encode_grey(0 * mask + sure))
    settings = {"formats": ["confidence", "png"], "image_labels": None}
    job = {"format": 1, "settings": settings, "sources_digest": "", "list": ""}
    (out / "job.json").write_text(json.dumps(job))
    return out


def test_coverage(labelled: Path, tiny_data: Path) -> None:
    arguments = ("eval", labelled, "--data", tiny_data, "--split", "train", "--coverage")
    found = json.loads(wsss(*arguments, "--json").succeeded().out)
    assert [row["threshold"] for row in found["rows"]] == [round(0.05 * i, 2) for i in range(20)]
    assert {row["accuracy"] for row in found["rows"]} == {100}
    kept = [row["kept"] for row in found["rows"]]
    assert set(kept[:11]) == {100}
    assert len(set(kept)) == 2 and 80 < kept[-1] < 95
    lines = wsss(*arguments).succeeded().out.splitlines()
    # The unsure image is background alone.
    assert lines[-1].split() == ["0.95", f"{kept[-1]:.2f}", "100.00", "100.00", "100.00", "3"]
