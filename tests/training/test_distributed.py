"""What processes share, and what cannot be shared; `method_contract.py` compares whole runs."""

import os
from pathlib import Path

import pytest
import torch
from tiny_run import (
    STAGES,
    TRAIN_NAMES,
    results_of,
    start_group,
    tiny_recipe,
)

from wsss.errors import ConfigError
from wsss.runtime.io.progress import SILENT
from wsss.training.data.image_set import ImageSet
from wsss.training.engine import distributed
from wsss.training.engine.run import Run
from wsss.training.methods.shared.per_image import make_files


@pytest.mark.slow
def test_two_processes_share_the_files_of_a_whole_run(
    tiny_data: Path, tmp_path: Path, finished_run: Path
) -> None:
    out = tmp_path / "run"
    assert _train_in_two(tiny_data, out) == [0, 0]
    assert results_of(out).keys() == results_of(finished_run).keys()
    for stage in ("seeds", "labels"):
        assert sorted(p.stem for p in (out / stage).glob("*.png")) == sorted(TRAIN_NAMES)
    assert all((out / stage / "stage.json").is_file() for stage in STAGES)


def test_a_batch_that_cannot_be_shared_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert _train_in_two(tiny_data, out, "segmenter.train.batch_size=3") == [1, 1]
    for rank in range(2):
        message = (tmp_path / f"error.{rank}.txt").read_text()
        assert message.startswith("ConfigError: a batch of 3 images cannot be shared by 2")
        assert message.endswith("choose a multiple of 2")
    assert not out.exists()


def _train_in_two(data: Path, out: Path, *overrides: str) -> list[int | None]:
    processes = start_group(data, out, overrides)
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


class Fellows:
    """Pretends to be one of several processes; writes down when it waits for the others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rank: int, count: int) -> None:
        self.events: list[str] = []
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: count)
        monkeypatch.setattr(distributed, "barrier", lambda: self.events.append("barrier"))


def test_rows_and_shares_cover_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    shares: list[str] = []
    for rank in range(3):
        Fellows(monkeypatch, rank, 3)
        rows += range(12)[distributed.own_rows(12)]
        shares += distributed.own_share("abcdefgh")
        assert distributed.is_main() == (rank == 0)
    assert rows == list(range(12))
    assert sorted(shares) == list("abcdefgh")
    with pytest.raises(ConfigError, match="10 images cannot be shared by 3 processes"):
        distributed.own_rows(10)


def test_nobody_writes_before_all_have_shared_out_the_same_list(
    tiny_images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that a faster process had made already would shift the shares of a slower one."""
    fellows = Fellows(monkeypatch, 1, 2)
    cpu = torch.device("cpu")
    run = Run(tmp_path, tiny_recipe(), tiny_images, None, None, None, cpu, SILENT)

    def make(sample: object, loaded: str, path: Path) -> None:
        fellows.events.append(loaded)
        path.touch()

    (tmp_path / "train_0.txt").touch()  # so the second of what is left is train_2
    make_files(run, "x", tmp_path, ".txt", lambda sample: sample.name, make)
    own = ["train_2", "train_4", "train_6", "train_8"]
    assert fellows.events == ["barrier", *own, "barrier"]
    made = {f"{name}.txt" for name in ("train_0", *own)}
    assert {path.name for path in tmp_path.iterdir()} == made


def test_without_torchrun_there_is_no_group() -> None:
    assert "WORLD_SIZE" not in os.environ
    with distributed.process_group(torch.device("cpu")):
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert not torch.distributed.is_initialized()
