"""A run that was killed goes on where it was, to the same bits as one that was not."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import (
    NETWORKS,
    STAGES,
    TRAIN_NAMES,
    assert_same_run,
    kill_training,
    results_of,
    train_apart,
)

METHOD = "selfguided"
"""The one method whose runs have everything that a kill can meet."""
NUM_KILLS = 5
SEED = 11
EPOCHS = tuple(f"{stage}.train.epochs=5" for stage in NETWORKS)


def _times(folder: Path, pattern: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(pattern)}


def test_a_kill_at_every_mechanism_of_a_run(
    tiny_data: Path, finished_self_guided_run: Path, tmp_path: Path
) -> None:
    """One run, killed five times on its way: what was there stays, and the end is the same."""
    out = tmp_path / "run"
    segmenter, scores = out / "segmenter", out / "cam" / "scores"

    # Before the run has a name, the folder holds a temporary file and is still ours to use.
    kill_training(tiny_data, out, "run.json", 1, method=METHOD)
    assert [path.suffix for path in out.iterdir()] == [".tmp"]

    # Between files of images: the fifth was written under its temporary name only.
    kill_training(tiny_data, out, "cam/scores/", 5, method=METHOD)
    made = _times(scores, "*.npz")
    assert sorted(made) == [f"{name}.npz" for name in TRAIN_NAMES[:4]]
    weights = _times(out / "cam", "weights.safetensors")
    assert weights

    # Between the labels of an epoch.
    kill_training(tiny_data, out, "segmenter/labels/epoch_1", 6, method=METHOD)
    assert (segmenter / "labels" / "epoch_1" / "train_4.png").exists()
    assert not (segmenter / "labels" / "epoch_1" / "train_5.png").exists()
    assert _times(out / "cam", "weights.safetensors") == weights  # no network is trained again
    assert {name: time for name, time in _times(scores, "*.npz").items() if name in made} == made

    # At a resume file that is written and not yet in place: the step is done again.
    kill_training(tiny_data, out, "segmenter/resume.safetensors", 1, method=METHOD)
    assert (segmenter / "resume.safetensors").exists()
    rows = (segmenter / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]
    assert not (segmenter / "weights.safetensors").exists()

    # Between the weights and the record of their stage, the resume file is about to go.
    kill_training(tiny_data, out, "segmenter/resume.safetensors", 3, method=METHOD)
    assert (segmenter / "weights.safetensors").exists()
    assert (segmenter / "resume.safetensors").exists()
    assert not (segmenter / "stage.json").exists()

    train_apart(tiny_data, out, method=METHOD)
    assert not list(out.rglob("resume.safetensors"))
    assert_same_run(finished_self_guided_run, out)


@pytest.mark.slow
def test_five_kills_leave_no_trace(tiny_data: Path, tmp_path: Path) -> None:
    """Killed before random changes of files, among them resume files of every single step."""
    (tmp_path / "straight").mkdir()
    straight = tmp_path / "straight" / "run"
    train_apart(tiny_data, straight, EPOCHS, save_every_step=True)
    num_changes = int((straight.parent / "changes.txt").read_text())
    generator = np.random.default_rng(SEED)
    out = tmp_path / "run"
    reached: list[int] = []
    interrupted: set[str] = set()
    for _ in range(NUM_KILLS):
        at = int(generator.integers(num_changes // 8, num_changes // 4))
        kill_training(tiny_data, out, "", at, EPOCHS)
        reached.append(sum((out / stage / "stage.json").is_file() for stage in STAGES))
        interrupted |= {
            path.parent.name
            for path in out.rglob("resume.safetensors")
            if not path.with_name("weights.safetensors").exists()
        }
    assert reached == sorted(reached)
    assert len(interrupted) >= 2  # kills have met networks in the middle of their training
    train_apart(tiny_data, out, EPOCHS, save_every_step=True)
    assert results_of(out).keys() == results_of(straight).keys()
    assert_same_run(straight, out)
