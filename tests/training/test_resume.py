"""A run that was killed goes on where it was, to the same bits as one that was not."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from tiny_run import (
    NETWORKS,
    STAGES,
    TRAIN_NAMES,
    assert_same_run,
    errors_of,
    files_of,
    results_of,
    start_training,
)

NUM_KILLS = 5
SEED = 11
EPOCHS = tuple(f"{stage}.train.epochs=5" for stage in NETWORKS)


@pytest.fixture(scope="module")
def straight(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, in a process like those that are killed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    process = start_training(tiny_data, out, EPOCHS, save_every_step=True)
    process.join()
    assert process.exitcode == 0, errors_of(out)
    return out


def _finish(tiny_data: Path, out: Path) -> None:
    process = start_training(tiny_data, out, EPOCHS, save_every_step=True)
    process.join()
    assert process.exitcode == 0, errors_of(out)


def _kill(tiny_data: Path, out: Path, at: int, below: str = "") -> None:
    process = start_training(
        tiny_data, out, EPOCHS, save_every_step=True, kill_at=at, kill_below=below
    )
    process.join()
    assert process.exitcode == -signal.SIGKILL, errors_of(out)


def test_the_uninterrupted_run_is_whole(straight: Path) -> None:
    results = results_of(straight)
    for stage in NETWORKS:
        assert f"{stage}/weights.safetensors" in results
    assert not list(straight.rglob("resume.safetensors"))
    assert not list(straight.rglob("*.tmp"))


def test_five_kills_leave_no_trace(tiny_data: Path, straight: Path, tmp_path: Path) -> None:
    """Killed before random changes of files, among them resume files of every single step."""
    num_changes = int((straight.parent / "changes.txt").read_text())
    generator = np.random.default_rng(SEED)
    out = tmp_path / "run"
    reached: list[int] = []
    interrupted: set[str] = set()
    for _ in range(NUM_KILLS):
        _kill(tiny_data, out, int(generator.integers(num_changes // 8, num_changes // 4)))
        reached.append(sum((out / stage / "stage.json").is_file() for stage in STAGES))
        interrupted |= {
            path.parent.name
            for path in out.rglob("resume.safetensors")
            if not path.with_name("weights.safetensors").exists()
        }
    assert reached == sorted(reached)
    assert len(interrupted) >= 2  # kills have met networks in the middle of their training
    _finish(tiny_data, out)
    assert_same_run(straight, out)


@pytest.mark.parametrize("stage", NETWORKS)
def test_a_kill_at_a_resume_file(
    tiny_data: Path, straight: Path, tmp_path: Path, stage: str
) -> None:
    """Of the changes in a stage's folder the fifth is the third resume file, not yet in place."""
    out = tmp_path / "run"
    _kill(tiny_data, out, 5, stage)
    rows = (out / stage / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]
    assert not (out / stage / "weights.safetensors").exists()
    _finish(tiny_data, out)
    assert results_of(out) == results_of(straight)


@pytest.mark.parametrize("stage", ["cam", "segmenter"])
def test_a_kill_between_weights_and_the_end(
    tiny_data: Path, straight: Path, tmp_path: Path, stage: str
) -> None:
    """After `unfinished`, metrics, ten resume files and the weights, the resume file goes."""
    out = tmp_path / "run"
    _kill(tiny_data, out, 14, stage)
    assert (out / stage / "weights.safetensors").exists()
    assert (out / stage / "resume.safetensors").exists()
    _finish(tiny_data, out)
    assert not list(out.rglob("resume.safetensors"))
    assert results_of(out) == results_of(straight)


@pytest.mark.parametrize("stage", ["cam", "labels"])
def test_a_kill_between_score_maps(
    tiny_data: Path, straight: Path, tmp_path: Path, stage: str
) -> None:
    out = tmp_path / "run"
    _kill(tiny_data, out, 5, f"{stage}/scores/")
    scores = out / stage / "scores"
    before = {path.name: path.stat().st_mtime_ns for path in scores.glob("*.npz")}
    # The fifth was written under its temporary name only.
    assert sorted(before) == [f"{name}.npz" for name in TRAIN_NAMES[:4]]
    weights = (out / "cam" / "weights.safetensors").stat().st_mtime_ns
    _finish(tiny_data, out)
    after = {path.name: path.stat().st_mtime_ns for path in scores.glob("*.npz")}
    assert {name: after[name] for name in before} == before
    assert (out / "cam" / "weights.safetensors").stat().st_mtime_ns == weights
    assert results_of(out) == results_of(straight)


def test_a_kill_before_the_run_has_a_name(tiny_data: Path, tmp_path: Path) -> None:
    """The folder then holds nothing but a temporary file, and is still ours to use."""
    out = tmp_path / "run"
    _kill(tiny_data, out, 1, "run.json")
    assert [path.suffix for path in out.iterdir()] == [".tmp"]
    process = start_training(tiny_data, out, EPOCHS, kill_at=1, kill_below="cam/scores/")
    process.join()
    assert process.exitcode == -signal.SIGKILL, errors_of(out)
    assert files_of(out, "cam/weights.safetensors")
