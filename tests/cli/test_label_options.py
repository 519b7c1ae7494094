"""What `wsss label` takes as sources and thresholds, and what a dry run tells."""

import json
from pathlib import Path

from command_line import wsss

from wsss.runtime.bulk.predictor_spec import read_thresholds
from wsss.runtime.io.files import CODES

DOCS = Path(__file__).parents[2] / "docs"


def test_thresholds_of_classes(run: Path, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text('{"bar": 0.25, "disc": 0.75}')
    assert read_thresholds(str(path), ("disc", "bar")) == (0.75, 0.25)
    assert read_thresholds("0.3", ("disc", "bar")) == (0.3, 0.3)
    classes = {}
    for number in ("0.000001", "0.999999"):
        out = tmp_path / number
        arguments = ("--model", run, "--out", out, "--mode", "walk", "--threshold", number)
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
