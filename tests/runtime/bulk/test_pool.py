"""Workers: what their deaths cost, and how they end."""

import csv
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from local_model import ONCE, POISON, REFUSED, LocalModel, write_images
from small_jobs import in_group, label, results
from tiny_run import files_of

from wsss.errors import WsssError
from wsss.runtime.bulk.plan import Plan, Settings
from wsss.runtime.bulk.work.pool import Death, Message, Pool, Worker, outcomes
from wsss.runtime.bulk.work.records import recorded_units
from wsss.runtime.bulk.work.unit import Task
from wsss.runtime.io.staging import WORK


def test_an_image_that_kills_its_worker_is_set_aside_alone(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 40, {5: POISON, 21: POISON, 33: REFUSED})
    summary = label(images, tmp_path / "out", workers=2)
    assert (summary.labelled, summary.failed) == (37, 3)
    with (tmp_path / "out" / "failures.csv").open(newline="") as file:
        codes = {Path(row[0]).name: row[1] for row in csv.reader(file)}
    assert codes.pop("image") == "code"
    assert codes == {
        "image 005.png": "worker-died",
        "image 021.png": "worker-died",
        "image 033.png": "model-failed",
    }
    healthy = write_images(tmp_path / "healthy", 40)
    label(healthy, tmp_path / "expected")
    found, expected = (files_of(tmp_path / n, "masks/**/*.png") for n in ("out", "expected"))
    assert len(found) == 37 and found.items() <= expected.items()


def test_a_worker_that_dies_once_costs_no_image(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 40, dict.fromkeys((0, 11, 12, 30), ONCE))
    (tmp_path / "memory").mkdir()
    model = LocalModel(memory=tmp_path / "memory")
    summary = label(images, tmp_path / "out", model, workers=2)
    assert (summary.labelled, summary.failed) == (40, 0)
    assert len(list((tmp_path / "memory").iterdir())) == 4
    assert len(files_of(tmp_path / "out", "masks/**/*.png")) == 40


def test_workers_that_cannot_begin_end_the_job(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 9)
    with pytest.raises(WsssError, match="in a row ended before their first image"):
        label(images, tmp_path / "out", LocalModel(is_deadly=True), workers=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_any_time_it_goes_on_to_the_same_bytes(
    workers: int, images: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out, chance = tmp_path / "out", random.Random(workers)
    for kill_at in (chance.randrange(40), chance.randrange(40), chance.randrange(48), None):
        process = in_group(tmp_path, images, out, workers)
        while kill_at is not None and len(list(out.glob("masks/**/*.png"))) <= kill_at:
            assert process.poll() is None
            time.sleep(0.002)
        if kill_at is not None:
            os.killpg(process.pid, signal.SIGKILL)
        _, said = process.communicate(timeout=60)
        assert process.returncode == (0 if kill_at is None else -signal.SIGKILL), said
    assert results(out) == expected


def test_workers_end_with_their_job(images: Path, tmp_path: Path) -> None:
    """Also when nobody tells them: a killed job leaves no process behind."""
    process = in_group(tmp_path, images, tmp_path / "out", 2)
    try:
        while not list(tmp_path.glob("out/masks/**/*.png")):
            assert process.poll() is None
            time.sleep(0.01)
        children = _children(process.pid)
        assert children
        process.kill()
        process.communicate()
        end = time.monotonic() + 30
        while any(Path(f"/proc/{child}").exists() for child in children):
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_lets_units_under_way_finish(
    number: signal.Signals, images: Path, tmp_path: Path
) -> None:
    """As terminals, `timeout`, systemd and SLURM send it."""
    out = tmp_path / "out"
    process = in_group(tmp_path, images, out, 2, seconds=0.1)
    try:
        while not list(out.glob("masks/**/*.png")):
            assert process.poll() is None
            time.sleep(0.01)
        assert recorded_units(out) == set()
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0 and "KeyboardInterrupt" in said
    assert "spawn_main" not in said  # no worker was interrupted
    assert 1 <= len(recorded_units(out)) <= 2
    assert {path.suffix for path in (out / WORK).iterdir()} == {".lock"}


def test_workers_hear_no_signals_from_their_first_moment(images: Path, tmp_path: Path) -> None:
    process = in_group(tmp_path, images, tmp_path / "out", 1)
    try:
        masks: list[int] = []
        while not masks:
            assert process.poll() is None
            masks = [_blocked(child) for child in _children(process.pid) if _is_worker(child)]
        wanted = sum(1 << (number - 1) for number in (signal.SIGINT, signal.SIGTERM))
        assert masks[0] & wanted == wanted
    finally:
        process.kill()
        process.communicate()


def _is_worker(pid: int) -> bool:
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


def _blocked(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("SigBlk:")).split()[1], 16)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(number) for number in text.split()]


class Mortal(Pool[Worker]):
    """Whose workers die of every unit, whatever its images."""

    started = 0

    def start(self) -> Worker:
        self.started += 1
        assert self.started < 20
        return Worker()

    def send(self, worker: Worker, task: Task) -> None:
        pass

    def hear(self, seconds: float) -> Iterator[tuple[Worker, Message | Death]]:
        yield from ((worker, Death("of age")) for worker in self.workers if worker.attempt)

    def kill(self, workers: Sequence[Worker]) -> None:
        pass


class Quiet:
    def under_way(self, ended: int) -> None:
        pass

    def stopping(self, seconds: float) -> None:
        pass


def test_a_unit_that_no_worker_survives_ends_the_job(tmp_path: Path) -> None:
    """Also one of which an image was suspected before: none was under way when they died."""
    plan = Plan(tmp_path, LocalModel(), Settings())
    for alone in (frozenset[int](), frozenset({3})):
        pool = Mortal(plan, 1, Quiet())
        with pytest.raises(WsssError, match=r"in a row ended .*\(of age\)"):
            list(outcomes(pool, [Task(0, alone=alone)]))
        assert pool.started == 3
