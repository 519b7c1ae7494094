"""Mistakes in the options of `wsss label`: one line each, exit code 1, and nothing is written."""

import json
from pathlib import Path

import pytest
from command_line import wsss

from wsss.runtime.bad_files import CODES
from wsss.runtime.bulk.class_thresholds import read_thresholds

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--format", "unknown format 'no': choose among png, confidence, scores, overlay, coco"),
        ("--format png,png", "format 'png' is given 2 times: give it once"),
        ("--format tar", "no output format: give --format png"),
        ("--format png,confidence", "--format confidence needs the confidence of each pixel"),
        ("--format scores", "--format scores needs the scores of each pixel"),
        ("--min-confidence 0.5", "--min-confidence needs the confidence of each pixel"),
        ("--min-confidence 1.5", "--min-confidence is 1.5, expected 0 to 1"),
        ("--min-confidence nan", "--min-confidence is nan, expected 0 to 1"),
        ("--batch 0", "--batch is 0, expected at least 1"),
        ("--max-pixels 0", "--max-pixels is 0, expected 1 to "),
        ("--workers -1", "--workers is -1, expected 0 or more"),
        ("--shard 3/3", "--shard is '3/3', expected i/n with i from 0 to n - 1"),
        ("--shard x", "--shard is 'x', expected i/n with i from 0 to n - 1"),
        ("--shard 0/2 --overwrite", "--shard is a part of a job: neither --overwrite nor"),
        ("--shard 0/2 --append", "--shard is a part of a job: neither --overwrite nor"),
        (
            "--dry-run --merge",
            "--dry-run looks at the whole of a job: leave --merge, --report, --shard",
        ),
        (
            "--dry-run --overwrite",
            "--dry-run looks at the whole of a job: leave --merge, --report, --shard",
        ),
        ("--merge", "--merge and --report work on what is in --out: give one of them, and leave"),
        ("--threshold 0.4", "--threshold is of the classifier, which neither --by segmenter nor"),
        ("--by walk --threshold 0", "threshold of class 'disc' is 0.0, expected a number between"),
        ("--by walk --threshold half", "--threshold is 'half', expected a number between 0 and 1"),
    ],
)
def test_options_that_cannot_be(
    options: str, message: str, run: Path, photos: Path, tmp_path: Path
) -> None:
    words = ["--format", "no"] if options == "--format" else options.split()
    out = tmp_path / "out"
    assert message in wsss("label", photos, "--model", run, "--out", out, *words).line()
    assert not out.exists()


def test_what_must_be_given(run: Path, photos: Path, tmp_path: Path) -> None:
    for arguments in (("--model", run), (photos,), ()):
        line = wsss("label", *arguments, "--out", tmp_path / "out").line()
        assert "nothing to label: give IMAGES and --model" in line
    line = wsss("label", "--merge", "--out", tmp_path / "out").line()
    assert "holds no job of `wsss label`: expected a job.json" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", 'holds no object like {"cat": 0.4'),
        ("{", "is no JSON file"),
        ('{"disc": 0.5}', "differ in the classes bar: give each class"),
        ('{"disc": 0.5, "bar": 0.5, "cat": 0.1}', "differ in the classes cat: give each class"),
        ('{"disc": 0.5, "bar": true}', "threshold of class 'bar' is nan, expected a number"),
        ('{"disc": 2, "bar": 0.5}', "threshold of class 'disc' is 2, expected a number"),
        ('{"disc": "0.5", "bar": 0.5}', "threshold of class 'disc' is nan, expected a number"),
    ],
)
def test_threshold_files(
    content: str, message: str, run: Path, photos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text(content)
    arguments = ("--model", run, "--out", tmp_path / "out", "--by", "walk", "--threshold", path)
    assert message in wsss("label", photos, *arguments).line()


def test_thresholds_of_classes(run: Path, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text('{"bar": 0.25, "disc": 0.75}')
    assert read_thresholds(str(path), ("disc", "bar")) == (0.75, 0.25)
    assert read_thresholds("0.3", ("disc", "bar")) == (0.3, 0.3)
    classes = {}
    for number in ("0.000001", "0.999999"):
        out = tmp_path / number
        arguments = ("--model", run, "--out", out, "--by", "walk", "--threshold", number)
        wsss("label", photos, *arguments).succeeded()
        classes[number] = set(json.loads((out / "summary.json").read_text())["classes"])
    assert classes["0.999999"] == {"background"} and len(classes["0.000001"]) > 1


def test_sources_of_every_kind(run: Path, photos: Path, tmp_path: Path) -> None:
    names = tmp_path / "list.txt"
    names.write_text("photos/photo 0.png\nphotos/photo 1.png\n")
    for number, source in enumerate((photos, f"{photos}/*.png", names, f"file://{photos}")):
        out = tmp_path / f"out {number}"
        printed = wsss("label", source, "--model", run, "--out", out, "--json").succeeded().out
        assert json.loads(printed)["labelled"] == 2
        assert {path.name for path in out.glob("masks/**/*.png")} == {"photo 0.png", "photo 1.png"}


def test_a_dry_run(run: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "photo 1.png").write_bytes(b"no image")
    command = ("label", photos, "--model", run, "--out", tmp_path / "out")
    printed = wsss(*command, "--dry-run").succeeded().out.splitlines()
    assert printed[0] == "2 images in 1 units: a new job"
    assert printed[1] == "1 of 2 headers that were read cannot be used"
    assert printed[2].startswith("  not-an-image: ") and "photo 1.png" in printed[2]
    assert printed[-1].startswith("nothing was written")
    found = json.loads(wsss(*command, "--dry-run", "--json").succeeded().out)
    assert (found["images"], found["is_begun"], found["bad"]) == (2, False, 1)
    assert not (tmp_path / "out").exists()
    assert wsss(*command).code == 3
    found = json.loads(wsss(*command, "--dry-run", "--json").succeeded().out)
    assert (found["is_begun"], found["labelled"], found["failed"]) == (True, 1, 1)


def test_the_page_tells_every_reason() -> None:
    text = (DOCS / "labelling.md").read_text()
    for code, meaning in CODES.items():
        assert f"| `{code}` | {meaning} |" in text
