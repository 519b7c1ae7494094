"""`--instances` of `wsss label` and `wsss eval`: what they write and print, and one line each."""

import json
from pathlib import Path
from unittest.mock import patch

import pytest
from colour_model import ColourModel
from command_line import wsss
from drawn_instances import LISTS, write_scenes


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes")
    return tmp_path / "scenes"


@pytest.fixture
def job(devkit: Path, tmp_path: Path) -> Path:
    """A job whose model tells instances."""
    out = tmp_path / "job"
    arguments = ("label", devkit / "JPEGImages", "--model", "any", "--out", out, "--instances")
    with patch("wsss.labelling.open_job_spec", return_value=ColourModel()):
        wsss(*arguments).succeeded()
    return out


def test_formats_of_a_job_with_instances(job: Path) -> None:
    assert json.loads((job / "job.json").read_text())["settings"]["formats"] == [
        "coco-instances",
        "instances",
        "png",
    ]
    count = sum(LISTS.values())
    for folder in ("masks", "SegmentationObject", "SegmentationClass"):
        assert len(list((job / folder).glob("*.png"))) == count
    assert len(json.loads((job / "instances.json").read_text())["images"]) == count


def test_eval_prints_figures(job: Path, devkit: Path) -> None:
    arguments = ("eval", job, "--data", devkit, "--split", "val", "--instances")
    found = json.loads(wsss(*arguments, "--json").succeeded().out)
    assert (found["list_name"], found["images"]) == ("val", LISTS["val"])
    assert 0 < found["ap"] < found["ap50"] < 100 and found["ap70"] < found["ap50"]
    assert set(found["classes"]) == {"cat", "dog"}
    printed = wsss(*arguments).succeeded().out
    assert f"AP50 {found['ap50']:.2f} %, AP70 {found['ap70']:.2f} %" in printed
    cat = found["classes"]["cat"]
    (line,) = (words for line in printed.splitlines() if (words := line.split())[:1] == ["cat"])
    assert line[1:4] == [str(cat["instances"]), str(cat["predicted"]), f"{cat['ap50']:.1f}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--instances", "has no instances: train a recipe of method irnet"),
        ("--instances --format png,overlay", "--format png,overlay has no place for --instances"),
        ("--format png,instances", "has no instances: train a recipe of method irnet"),
    ],
)
def test_models_without_instances(
    options: str, message: str, run: Path, photos: Path, tmp_path: Path
) -> None:
    arguments = ("label", photos, "--model", run, "--out", tmp_path / "out", *options.split())
    assert message in wsss(*arguments).line()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--sweep", "--coverage", "--calibrate", "--threshold 0.5"])
def test_eval_of_instances_and_something_else(option: str, devkit: Path) -> None:
    arguments = ("eval", devkit, "--data", devkit, "--instances", *option.split())
    assert "--instances measure something else than mIoU" in wsss(*arguments).line()


def test_eval_of_images_without_instances(run: Path, tiny_data: Path, job: Path) -> None:
    line = wsss("eval", job, "--data", tiny_data, "--instances").line()
    assert "13 of them without instance masks" in line
    line = wsss("eval", run, "--data", tiny_data, "--instances").line()
    assert "has no instances: train a recipe of method irnet" in line


def test_data_counts_instance_masks(devkit: Path) -> None:
    count = sum(LISTS.values())
    assert f"{count} masks ({count} with instances)" in wsss("data", devkit).succeeded().out
