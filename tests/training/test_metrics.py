"""Figures on disk: whole lines, continued as if never interrupted, and readable by TensorBoard."""

from pathlib import Path

import pytest

from wsss.errors import ArtifactError
from wsss.training.engine.metrics import MetricsWriter, read_metrics

LOSSES = {step: 1 / step for step in range(1, 8)}


def write(folder: Path, after: int, up_to: int) -> None:
    writer = MetricsWriter(folder, after)
    for step in range(after + 1, up_to + 1):
        writer.write(step, loss=LOSSES[step], epoch=step / 2)


def losses(folder: Path) -> dict[float, float]:
    return {row["step"]: row["loss"] for row in read_metrics(folder / "metrics.jsonl")}


def test_no_file(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    write(tmp_path / "whole", 0, 7)
    write(tmp_path / "resumed", 0, 5)
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed here
    write(tmp_path / "resumed", 3, 7)
    texts = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "resumed")]
    assert texts[0] == texts[1]
    assert losses(tmp_path / "whole") == LOSSES


def test_a_new_training_forgets_an_old_one(tmp_path: Path) -> None:
    write(tmp_path, 0, 5)
    write(tmp_path, 0, 2)
    assert losses(tmp_path).keys() == {1, 2}


def test_half_a_line_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-2])
    assert losses(tmp_path).keys() == {1, 2}


def test_tensorboard_reads_a_resumed_training(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, 0, 5)
    write(tmp_path, 3, 7)
    events = accumulator.EventAccumulator(str(tmp_path / "events")).Reload()
    read = {event.step: event.value for event in events.Scalars("loss")}
    assert read == pytest.approx(LOSSES)
    assert events.Tags()["scalars"] == ["loss", "epoch"]


@pytest.mark.parametrize("blocked", ["metrics.jsonl", "events"])
def test_figures_that_cannot_be_written(blocked: str, tmp_path: Path) -> None:
    if blocked == "events":
        pytest.importorskip("tensorboard")
        (tmp_path / blocked).write_text("a file where a folder should be")
    else:
        (tmp_path / blocked).mkdir()
    with pytest.raises(ArtifactError, match=blocked):
        MetricsWriter(tmp_path, 0)
