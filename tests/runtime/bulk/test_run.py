"""Jobs: the same bytes however they are run, nothing lost when something dies, clear refusals."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_model import FATAL, NAN, ONCE, POISON, REFUSED, LocalModel, write_images
from tiny_run import files_of

from wsss.errors import ArtifactError, ConfigError, DataError, ServerError, WsssError
from wsss.runtime.bulk.clock import STAGES
from wsss.runtime.bulk.durable import WORK
from wsss.runtime.bulk.plan import Settings
from wsss.runtime.bulk.records import read_images, recorded_units
from wsss.runtime.bulk.run import LabelSummary, Shard, finish, label_in_bulk
from wsss.runtime.image_io import read_label_map
from wsss.runtime.progress import Progress, ProgressTask

COUNT = 50
TOLD = ("timings.jsonl", "summary.json", "report.html")
"""What a job tells of time, which is not the same twice."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty images, of which one is refused by the model and one is no image."""
    folder = write_images(tmp_path_factory.mktemp("bulk") / "images", COUNT, {20: REFUSED})
    (folder / "3" / "image 007.png").write_bytes(b"no image")
    return folder


def label(images: Path, out: Path, model: LocalModel | None = None, **options: Any) -> LabelSummary:
    options.setdefault("workers", 0)
    return label_in_bulk([images], model or LocalModel(), out, **options)


def results(out: Path) -> dict[str, bytes]:
    """Everything that must be the same, however a job was run; nothing else may be left."""
    found = files_of(out, "**/*.*")
    assert not [name for name in found if name.endswith((".tmp", ".marks"))]
    locks = f"{WORK}/"
    return {
        name: data
        for name, data in found.items()
        if name not in TOLD and not name.startswith(locks)
    }


@pytest.fixture(scope="module")
def expected(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    summary = label(images, out, settings=Settings(("png", "coco")))
    assert (summary.images, summary.labelled, summary.failed) == (COUNT, COUNT - 2, 2)
    return results(out)


def test_what_a_job_gives(images: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    label(images, out, settings=Settings(("png", "coco")))
    assert results(out) == expected
    assert len(list(out.glob("masks/**/*.png"))) == COUNT - 2
    assert len(recorded_units(out)) == 7  # of 8 images each
    with (out / "failures.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [row[1] for row in rows] == ["code", "model-failed", "not-an-image"]
    assert rows[1][0].endswith("0/image 020.png") and "does not like" in rows[1][2]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["labelled"] == COUNT - 2 and summary["units_done"] == 7
    assert summary["codes"] == {"ok": COUNT - 2, "model-failed": 1, "not-an-image": 1}
    assert sum(each["share_of_pixels"] for each in summary["classes"].values()) == pytest.approx(1)
    record = next(iter(read_images(out, 0)))
    label_map = read_label_map(out / "masks" / f"{record.output}.png")
    assert record.size == label_map.shape
    assert record.pixels == {int(v): int((label_map == v).sum()) for v in np.unique(label_map)}
    assert len(json.loads((out / "coco.json").read_text())["annotations"]) > 0


class Shown(Progress, ProgressTask):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.done, self.shares, self.figures = 0, dict[str, float](), dict[str, float]()

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[ProgressTask]:
        assert (name, total, done) == ("label", COUNT, 0)
        yield self

    def advance(self, count: int = 1, **figures: float) -> None:
        self.done, self.figures = self.done + count, figures

    def divide(self, shares: Mapping[str, float]) -> None:
        self.shares = dict(shares)


@pytest.mark.parametrize("workers", [0, 2])
def test_progress_tells_rate_failures_and_where_the_time_goes(
    workers: int, images: Path, tmp_path: Path
) -> None:
    shown = Shown()
    label(images, tmp_path / "out", workers=workers, progress=shown)
    assert shown.done == COUNT
    assert shown.figures["failed"] == 2 and shown.figures["images/s"] > 0
    idle = shown.shares.pop("network idle")
    assert 0 < idle < 1
    assert tuple(shown.shares) == STAGES and min(shown.shares.values()) > 0
    assert sum(shown.shares.values()) == pytest.approx(1)
    told = json.loads((tmp_path / "out" / "summary.json").read_text())["time"]
    assert told["share_outside_network"] == pytest.approx(idle, abs=1e-4)
    work = sum(told["stage_seconds"][name] for name in STAGES)
    assert told["stage_seconds"]["read"] / work == pytest.approx(shown.shares["read"], abs=1e-3)


@pytest.mark.parametrize(
    ("workers", "in_flight", "batch"), [(1, 1, 1), (2, 1, 1), (0, 8, 1), (2, 3, 1)]
)
def test_workers_and_threads_change_nothing(
    workers: int,
    in_flight: int,
    batch: int,
    images: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
) -> None:
    model = LocalModel(in_flight=in_flight)
    settings = Settings(("png", "coco"), batch=batch)
    label(images, tmp_path / "out", model, workers=workers, settings=settings)
    assert results(tmp_path / "out") == expected


def test_batches_change_only_what_says_so(
    images: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    label(images, tmp_path / "out", settings=Settings(("png", "coco"), batch=4), workers=2)
    found = results(tmp_path / "out")
    assert found.keys() == expected.keys()
    differing = {name.split("/")[0] for name in found if found[name] != expected[name]}
    # The size of a batch belongs to the settings, whose digest the records hold.
    assert differing <= {"job.json", "units", "coco.json", "masks"}
    for name in found:
        if name.startswith("masks"):
            pixels = read_label_map(tmp_path / "out" / name)
            (tmp_path / "one.png").write_bytes(expected[name])
            np.testing.assert_array_equal(pixels, read_label_map(tmp_path / "one.png"))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_give_what_one_run_gives(
    count: int, images: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out, settings = tmp_path / "out", Settings(("png", "coco"))
    order = random.Random(count).sample(range(count), count)
    for number, index in enumerate(order):
        if number:
            with pytest.raises(ConfigError, match=r"lacks . of 7 units"):
                finish(out)
        label(images, out, settings=settings, shard=Shard(index, count), workers=number % 2)
    counts = finish(out)
    assert (counts.labelled, counts.failed) == (COUNT - 2, 2)
    found = results(out)
    assert {name for name in found if name not in expected} == set()
    assert found == expected


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


def test_answers_that_are_no_numbers_fail_alone(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 20, {7: NAN})
    summary = label(images, tmp_path / "out", settings=Settings(("png", "confidence", "scores")))
    assert (summary.labelled, summary.failed) == (19, 1)
    text = (tmp_path / "out" / "failures.csv").read_text()
    assert "image 007.png,model-failed,the model gave NaN" in text


def test_with_nothing_left_to_do_nothing_is_written(images: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", Settings(("png", "coco"))
    label(images, out, settings=settings)
    expected = results(out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("[!.]*/**/*")}
    before |= {path: path.stat().st_mtime_ns for path in out.glob("*.*") if path.name != WORK}
    summary = label(images, out, settings=settings)
    assert (summary.labelled, summary.kept, summary.failed) == (0, COUNT - 2, 2)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert results(out) == expected


@pytest.mark.parametrize("lost", ["summary.json", "units/00003.jsonl.gz"])
def test_results_that_are_not_of_all_records_are_made_again(
    lost: str, images: Path, tmp_path: Path
) -> None:
    out, settings = tmp_path / "out", Settings(("png", "coco"))
    label(images, out, settings=settings)
    expected = results(out)
    (out / lost).unlink()
    (out / "coco.json").write_text("{}")
    (out / "failures.csv").unlink()
    label(images, out, settings=settings)
    assert results(out) == expected and (out / "summary.json").is_file()


def test_a_call_that_is_stopped_leaves_no_old_summary(tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", 20), tmp_path / "out"
    label(images, out)
    write_images(images, 40, {39: FATAL})
    with pytest.raises(ServerError):
        label(images, out, append=True)
    assert not (out / "summary.json").exists()
    assert (out / "masks" / "0" / "image 000.png").is_file()


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
def test_an_error_that_is_not_about_an_image_ends_the_job(workers: int, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 30, {29: FATAL})
    out = tmp_path / "out"
    with pytest.raises(ServerError, match="gone"):
        label(images, out, workers=workers)
    done = recorded_units(out)
    assert len(done) < 4 and not list(out.glob("**/*.tmp"))
    write_images(images, 30)
    label(images, out, overwrite=True)
    healthy = label(write_images(tmp_path / "healthy", 30), tmp_path / "expected")
    assert healthy.labelled == 30
    found, expected = (files_of(tmp_path / n, "masks/**/*.png") for n in ("out", "expected"))
    assert found == expected


SCRIPT = """
import sys
from pathlib import Path
from local_model import LocalModel
from wsss.runtime.bulk.plan import Settings
from wsss.runtime.bulk.run import label_in_bulk

if __name__ == "__main__":
    images, out, seconds, workers = sys.argv[1:]
    label_in_bulk([images], LocalModel(seconds=float(seconds)), Path(out),
                  workers=int(workers), settings=Settings(("png", "coco")))
"""


def in_group(tmp_path: Path, images: Path, out: Path, workers: int) -> "subprocess.Popen[str]":
    """A job in a process group of its own."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), str(images), str(out), "0.02", str(workers)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


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


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(number) for number in text.split()]


def test_one_job_in_a_folder(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = in_group(tmp_path, images, out, 0)
    try:
        while not list(out.glob("masks/**/*.png")):
            assert process.poll() is None
            time.sleep(0.01)
        settings = Settings(("png", "coco"))
        with pytest.raises(ConfigError, match=f"is being written by process {process.pid} on "):
            label(images, out, settings=settings)
        with pytest.raises(ConfigError, match=f"is being written by process {process.pid} on "):
            label(images, out, settings=settings, shard=Shard(0, 2))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_shards_side_by_side(images: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out, settings = tmp_path / "out", Settings(("png", "coco"))
    errors: list[BaseException] = []

    def work(index: int) -> None:
        try:
            model = LocalModel(seconds=0.01)
            label(images, out, model, settings=settings, shard=Shard(index, 3))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    finish(out)
    assert results(out) == expected


def test_new_images_are_appended_where_told(tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", 20), tmp_path / "out"
    label(images, out)
    before = results(out)
    write_images(images, 30)
    assert label(images, out).images == 20
    assert results(out) == before
    summary = label(images, out, append=True)
    assert (summary.images, summary.kept, summary.labelled) == (30, 20, 10)
    after = results(out)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {"job.json"}
    assert label(images, out, append=True).labelled == 0
    assert results(out) == after
    assert len(files_of(out, "masks/**/*.png")) == 30


def test_a_file_that_changes_meanwhile_is_not_labelled(tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", 20), tmp_path / "out"
    label(images, out, shard=Shard(0, 2))
    path = images / "2" / "image 014.png"  # of the second unit, which is of the other shard
    path.write_bytes(path.read_bytes() + b"more")
    (images / "2" / "image 010.png").unlink()
    summaries = [label(images, out, shard=Shard(index, 2)) for index in range(2)]
    assert sum(summary.failed for summary in summaries) == 2
    finish(out)
    text = (out / "failures.csv").read_text()
    assert "image 014.png,changed," in text and "image 010.png,missing," in text
    summary = label(images, out, retry_failed=True)
    assert (summary.labelled, summary.failed) == (1, 1)


def test_failed_images_are_tried_again_where_told(
    images: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    mine = write_images(tmp_path / "images", COUNT, {20: REFUSED})
    path = mine / "3" / "image 007.png"
    whole_image = path.read_bytes()
    for formats in (("png", "coco"), ("png", "coco", "tar")):
        path.write_bytes(b"no image")
        out = tmp_path / "-".join(formats)
        settings = Settings(formats)
        label(mine, out, settings=settings, workers=1)
        before = results(out)
        path.write_bytes(whole_image)
        assert label(mine, out, settings=settings).failed == 2
        assert results(out) == before
        summary = label(mine, out, settings=settings, retry_failed=True, workers=1)
        assert (summary.labelled, summary.kept, summary.failed) == (1, COUNT - 2, 1)
        whole = tmp_path / f"{out.name}-whole"
        label(mine, whole, settings=settings)
        # The list, and with it `job.json`, knows the file as it was first.
        found, wanted = (
            {
                name: data
                for name, data in results(folder).items()
                if name != "job.json" and not name.startswith("inputs/")
            }
            for folder in (out, whole)
        )
        assert found == wanted


def test_a_tar_a_unit(images: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    settings = Settings(("png", "coco", "tar", "confidence"))
    label(images, tmp_path / "one", settings=settings)
    label(images, tmp_path / "two", LocalModel(in_flight=4), settings=settings, workers=2)
    assert results(tmp_path / "one") == results(tmp_path / "two")
    assert not (tmp_path / "one" / "masks").exists()
    seen = {}
    for path in sorted((tmp_path / "one" / "shards").iterdir()):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None and member.mtime == 0 and member.uid == 0
                seen[member.name] = file.read()
    keys = sorted({name.split(".")[0] for name in seen})
    assert len(keys) == COUNT - 2 and len(seen) == 3 * len(keys)
    name = json.loads(seen["000000000.json"])["name"]
    assert name == "0/image 000.png"
    (tmp_path / "mask.png").write_bytes(seen["000000000.masks.png"])
    (tmp_path / "plain.png").write_bytes(expected["masks/0/image 000.png"])
    np.testing.assert_array_equal(
        read_label_map(tmp_path / "mask.png"), read_label_map(tmp_path / "plain.png")
    )


def test_doubtful_pixels_say_nothing_where_told(images: Path, tmp_path: Path) -> None:
    label(images, tmp_path / "all")
    label(images, tmp_path / "sure", settings=Settings(min_confidence=0.1))
    for name in files_of(tmp_path / "all", "masks/**/*.png"):
        whole, sure = (read_label_map(tmp_path / folder / name) for folder in ("all", "sure"))
        assert 0.2 < (sure == 255).mean() < 0.8
        assert ((sure == whole) | (sure == 255)).all()


def test_given_labels(images: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    names = [path.relative_to(images).as_posix() for path in sorted(images.glob("**/*.png"))]
    table.write_text("file,labels\n" + "".join(f"{name},bird\n" for name in names))
    label(images, tmp_path / "out", labels_path=table)
    for name in files_of(tmp_path / "out", "masks/**/*.png"):
        assert set(np.unique(read_label_map(tmp_path / "out" / name))) <= {0, 3}
    with pytest.raises(ConfigError, match="different image_labels"):
        label(images, tmp_path / "out")
    table.write_text("file,labels\n" + "".join(f"{name},\n" for name in names[1:]))
    with pytest.raises(DataError, match="does not mention"):
        label(images, tmp_path / "none", labels_path=table)
    assert not (tmp_path / "none").exists()


@pytest.fixture
def finished(images: Path, tmp_path: Path) -> Iterator[Path]:
    label(images, tmp_path / "finished")
    return tmp_path / "finished"


def test_another_job_is_refused_and_harms_nothing(images: Path, finished: Path) -> None:
    before = results(finished)
    for options, differing in (
        ({"settings": Settings(("png", "overlay"))}, "formats"),
        ({"settings": Settings(min_confidence=0.5)}, "min_confidence"),
        ({"settings": Settings(batch=2), "model": LocalModel("other")}, "batch, name"),
    ):
        with pytest.raises(ConfigError, match=f"different {differing}\\)"):
            label(images, finished, **options)
    with pytest.raises(ConfigError, match="different images"):
        label(images / "0", finished)
    assert results(finished) == before
    label(images / "0", finished, LocalModel("other"), overwrite=True)
    assert len(files_of(finished, "masks/**/*.png")) == 12  # one of thirteen is refused


def test_strange_folders_are_left_alone(images: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ArtifactError, match=r"'thesis\.tex'.* holds no job"):
            label(images, tmp_path / "mine", overwrite=overwrite)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ArtifactError, match="is a file"):
        label(images, tmp_path / "file")
    with pytest.raises(ArtifactError, match="holds no job"):
        finish(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


def test_a_damaged_record_is_told(images: Path, finished: Path) -> None:
    record = finished / "units" / "00003.jsonl.gz"
    whole = record.read_bytes()
    for data in (b"", whole[:50], b"no gzip", whole[:-20] + b"x" * 20):
        record.write_bytes(data)
        with pytest.raises(ArtifactError, match=r"00003\.jsonl\.gz' is (damaged|empty)"):
            list(read_images(finished, 3))
            finish(finished)
    record.unlink()
    assert label(images, finished).labelled == 8
    assert record.read_bytes() == whole


def test_a_list_that_was_exchanged_is_told(images: Path, finished: Path) -> None:
    part = finished / "inputs" / "00001.jsonl.gz"
    part.write_bytes((finished / "inputs" / "00002.jsonl.gz").read_bytes())
    (finished / "units" / "00001.jsonl.gz").unlink()
    with pytest.raises(ArtifactError, match=r"00001\.jsonl\.gz' is damaged or was exchanged"):
        label(images, finished)


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "1/0", "1/2/3"])
def test_shards_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected i/n with i from 0 to n - 1"):
        Shard.parse(text)


def test_formats_that_a_model_cannot_serve(images: Path, tmp_path: Path) -> None:
    model = LocalModel(offers=frozenset())
    for settings in (Settings(("png", "confidence")), Settings(min_confidence=0.5)):
        with pytest.raises(ConfigError, match="needs the confidence of each pixel"):
            label(images, tmp_path / "out", model, settings=settings)
    assert not (tmp_path / "out").exists()


def test_nothing_but_locks_stays_in_the_work_folder(finished: Path) -> None:
    assert {path.suffix for path in (finished / WORK).iterdir()} == {".lock"}
