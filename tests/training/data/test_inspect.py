"""What `wsss data` finds in a set that has everything wrong with it."""

import json
import os
from pathlib import Path

import pytest
from small_image_sets import write_folder, write_image, write_mask, write_text
from typer.testing import CliRunner

from wsss.cli.main import app
from wsss.runtime.io.progress import Progress, ProgressTask
from wsss.training.data.inspect import THIN_CLASS_IMAGES, inspect

NAMES = ("a", "b", "twin", "cut", "beyond", "large", "empty")
LABELS = (
    "file,labels,split\na,cat,train\nb,dog,val\ntwin,cat,val\ncut,cat,train\nbeyond,dog,train\n"
    "large,dog,train\nempty,,train\ngone,cat,train"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = write_folder(tmp_path, LABELS, [f"{name}.png" for name in (*NAMES, "extra")])
    images = root / "images"
    (images / "twin.png").write_bytes((images / "a.png").read_bytes())
    (images / "cut.png").write_bytes((images / "cut.png").read_bytes()[:-20])
    write_mask(root / "masks" / "a.png", 1, 2)
    write_mask(root / "masks" / "beyond.png", 3)
    write_mask(root / "masks" / "large.png", 2)
    (images / "large.png").write_bytes(b"P6 2 2 255\n" + bytes(12))
    return root


def test_everything_wrong(root: Path) -> None:
    inspection = inspect(root)
    kinds = {kind: [f.image for f in found] for kind, found in inspection.by_kind().items()}
    assert kinds == {
        "unlabelled image": ["extra"],
        "label without image": ["gone"],
        "image in no list": ["extra.png"],
        "unreadable image": ["cut"],
        "bad mask": ["beyond", "large"],
        "duplicate": ["twin"],
    }
    assert "(in train; val)" in inspection.by_kind()["duplicate"][0].text
    assert inspection.images == 8 and inspection.masks == 3
    assert inspection.background_only == 1 and inspection.unlabelled == 1
    assert inspection.splits == {"train": 5, "val": 2}
    assert inspection.class_images == {
        "cat": {"all": 3, "train": 2, "val": 1},
        "dog": {"all": 3, "train": 2, "val": 1},
    }
    assert inspection.thin_classes == {"cat": 2, "dog": 2}


def test_enough_images_are_not_thin(tmp_path: Path) -> None:
    for number in range(THIN_CLASS_IMAGES):
        write_image(tmp_path / "cat" / f"{number}.png", number)
    for number in range(THIN_CLASS_IMAGES - 1):
        write_image(tmp_path / "dog" / f"{number}.png", 100 + number)
    inspection = inspect(tmp_path)
    assert inspection.thin_classes == {"dog": THIN_CLASS_IMAGES - 1}
    assert inspection.findings == ()


def test_damaged_files_are_no_duplicates(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "whole.png")
    for name in ("cut", "gone"):
        (tmp_path / "cat" / f"{name}.png").write_bytes(b"")
    assert [finding.kind for finding in inspect(tmp_path).findings] == ["unreadable image"] * 2


def test_progress_counts_every_image(root: Path) -> None:
    counted = []

    class Task(ProgressTask):
        def advance(self, count: int = 1, **figures: float) -> None:
            counted.append(count)

    class Counting(Progress):
        def task(self, name, total, done=0):  # type: ignore[no-untyped-def]
            from contextlib import nullcontext

            assert total == 8
            return nullcontext(Task())

    inspect(root, progress=Counting())
    assert sum(counted) == 8


def test_command(root: Path) -> None:
    result = CliRunner().invoke(app, ["data", str(root), "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["classes"] == ["cat", "dog"] and len(report["findings"]) == 7
    result = CliRunner().invoke(app, ["data", str(root)])
    assert result.exit_code == 0
    for text in ("8 images, 2 classes, 3 masks", "bad mask: 2", "unlabelled image: 1", "few"):
        assert text in result.stdout


def test_names_are_no_markup(tmp_path: Path) -> None:
    write_folder(tmp_path, "file,labels\na,[bold]cat\n[red]gone,[bold]cat", ["a.png"])
    result = CliRunner().invoke(app, ["data", str(tmp_path)])
    assert "[bold]cat" in result.stdout and "'[red]gone'" in result.stdout


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / os.fsdecode(b"\xff.png"))
    (tmp_path / "cat" / os.fsdecode(b"\xfe.png")).write_bytes(b"")
    result = CliRunner().invoke(app, ["data", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["findings"][0]["image"] == "cat/\udcfe"
    assert "udcfe" in CliRunner().invoke(app, ["data", str(tmp_path)]).stdout


def test_what_cannot_be_read_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "note.md", "nothing here")
    result = CliRunner().invoke(app, ["data", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith("wsss: ") and str(tmp_path) in result.stderr
