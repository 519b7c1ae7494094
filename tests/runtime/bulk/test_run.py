"""Jobs: the same bytes however they are run, nothing lost, clear refusals."""

import csv
import json
import random
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_model import FATAL, LARGE, NAN, REFUSED, LocalModel, write_images
from small_jobs import COUNT, label, results
from synthetic_jobs import list_of
from tiny_run import files_of

from wsss.errors import ArtifactError, ConfigError, DataError, ServerError
from wsss.runtime.bulk.formats.image_files import PngWriter
from wsss.runtime.bulk.inputs.images import LabelledImage
from wsss.runtime.bulk.plan import Settings
from wsss.runtime.bulk.run import Shard, finish_job, label_in_bulk
from wsss.runtime.bulk.timings import STAGES
from wsss.runtime.bulk.work.records import read_images, recorded_units
from wsss.runtime.io.image_io import read_label_map
from wsss.runtime.io.progress import Progress, ProgressTask
from wsss.runtime.io.staging import WORK


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
    record = next(iter(read_images(out, list_of(out), 0)))
    label_map = read_label_map(out / "masks" / f"{record.output}.png")
    assert record.size == label_map.shape
    assert record.pixels == {int(v): int((label_map == v).sum()) for v in np.unique(label_map)}
    assert len(json.loads((out / "coco.json").read_text())["annotations"]) > 0


class Shown(Progress, ProgressTask):
    """Remembers what it was told of labelling, and what came behind it."""

    def __init__(self) -> None:
        self.done, self.shares, self.figures = 0, dict[str, float](), dict[str, float]()
        self.later: list[tuple[str, int]] = []

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[ProgressTask]:
        if name == "label":
            assert (total, done) == (COUNT, 0)
            yield self
        else:
            self.later.append((name, total))
            yield ProgressTask()

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
    assert shown.done == COUNT and ("report", COUNT) in shown.later
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
                finish_job(out)
        label(images, out, settings=settings, shard=Shard(index, count), workers=number % 2)
    counts = finish_job(out)
    assert (counts.labelled, counts.failed) == (COUNT - 2, 2)
    found = results(out)
    assert {name for name in found if name not in expected} == set()
    assert found == expected


def test_answers_that_are_no_numbers_fail_alone(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 20, {7: NAN})
    summary = label(images, tmp_path / "out", settings=Settings(("png", "confidence", "scores")))
    assert (summary.labelled, summary.failed) == (19, 1)
    text = (tmp_path / "out" / "failures.csv").read_text()
    assert "image 007.png,model-failed,the model gave NaN" in text


def test_an_image_for_which_there_is_no_memory_fails_alone(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 20, {7: LARGE, 10: LARGE})
    for batch in (1, 4):
        out = tmp_path / f"{batch}"
        summary = label(images, out, settings=Settings(batch=batch))
        assert (summary.labelled, summary.failed) == (18, 2)
        text = (out / "failures.csv").read_text()
        assert "image 007.png,out-of-memory,no memory to label it (Unable to allocate" in text


def test_an_image_that_cannot_be_encoded_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, encode = write_images(tmp_path / "images", 10), PngWriter.files

    def files(writer: PngWriter, image: LabelledImage) -> Iterator[tuple[str, bytes]]:
        if image.index == 7:
            raise MemoryError("too little of it")
        return encode(writer, image)

    monkeypatch.setattr(PngWriter, "files", files)
    out = tmp_path / "out"
    assert label(images, out, settings=Settings(("confidence", "png"))).failed == 1
    assert ",out-of-memory," in (out / "failures.csv").read_text()
    assert len(files_of(out, "confidence/**/*.png")) == 9


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
    finish_job(out)
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


def test_only_a_record_counts_for_what_formats_collect(images: Path, tmp_path: Path) -> None:
    """Entries of a unit that was killed while it tried a failed image again."""
    mine, settings = write_images(tmp_path / "images", COUNT), Settings(("png", "coco"))
    path = mine / "3" / "image 007.png"
    whole_image = path.read_bytes()
    label(mine, tmp_path / "whole", settings=settings)
    path.write_bytes(b"no image")
    out = tmp_path / "out"
    label(mine, out, settings=settings)
    before = results(out)
    path.write_bytes(whole_image)
    for part in (tmp_path / "whole" / "entries").rglob("*.gz"):
        shutil.copy(part, out / part.relative_to(tmp_path / "whole"))
    (out / "summary.json").unlink()
    label(mine, out, settings=settings)
    assert results(out)["coco.json"] == before["coco.json"]


def test_progress_counts_each_image_once(images: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", Settings(("png", "coco"))
    calls: tuple[tuple[dict[str, Any], int], ...] = (
        ({"shard": Shard(0, 2)}, 2),
        ({}, 2),
        ({}, 2),
        ({"retry_failed": True}, 2),
    )
    for options, failed in calls:
        told = Told()
        label(images, out, settings=settings, progress=told, **options)
        task = told.tasks[0]
        assert (task.name, task.done) == ("label", task.total)
        assert task.figures.get("failed", failed) == failed
        assert all(each.done == each.total for each in told.tasks)
    assert [each.name for each in told.tasks] == ["label", *["collect coco"] * 2, "report"]
    told = Told()
    finish_job(out, told)
    assert told.tasks[-1].name == "report" and told.tasks[-1].done == COUNT


def test_progress_within_a_unit(tmp_path: Path) -> None:
    images, told = write_images(tmp_path / "images", 8), Told()
    label(images, tmp_path / "out", progress=told)
    assert told.tasks[0].steps == [*[1] * 8, 0]


class Told(Progress):
    """Progress as numbers."""

    def __init__(self) -> None:
        self.tasks: list[ToldTask] = []
        self.notes: list[str] = []

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[ProgressTask]:
        self.tasks.append(ToldTask(name, total, done))
        yield self.tasks[-1]

    def note(self, text: str) -> None:
        self.notes.append(text)


class ToldTask(ProgressTask):
    def __init__(self, name: str, total: int, done: int) -> None:
        self.name, self.total, self.done = name, total, done
        self.figures: dict[str, float] = {}
        self.steps: list[int] = []

    def advance(self, count: int = 1, **figures: float) -> None:
        self.done, self.figures = self.done + count, figures
        self.steps.append(count)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", 3), tmp_path / "out"
    told = Told()
    label(images, out, progress=told)
    assert told.notes == []
    for number in range(2):
        (images / f"link {number}").symlink_to(tmp_path)
    label(images, out, append=True, progress=told)
    assert told.notes == [f"left out: '{images}/link 0' (a link to a folder) and 1 more"]


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


def test_the_same_images_however_they_are_named(
    images: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)
    for source in (f"{images}/", images.name, f"./{images.name}/"):
        assert label_in_bulk([source], LocalModel(), finished, workers=0).kept == COUNT - 2
    monkeypatch.chdir(images)
    given = rf"give the same `images` as at first, \['{images}'\], `append` new ones, choose"
    with pytest.raises(ConfigError, match=given):
        label_in_bulk([images.name], LocalModel(), finished, workers=0)


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
        finish_job(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "1/0", "1/2/3"])
def test_shards_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected i/n with i from 0 to n - 1"):
        Shard.parse(text)


def test_formats_that_a_model_cannot_serve(images: Path, tmp_path: Path) -> None:
    model = LocalModel(provides=frozenset())
    for settings in (Settings(("png", "confidence")), Settings(min_confidence=0.5)):
        with pytest.raises(ConfigError, match="needs the confidence of each pixel"):
            label(images, tmp_path / "out", model, settings=settings)
    assert not (tmp_path / "out").exists()


def test_nothing_but_locks_stays_in_the_work_folder(finished: Path) -> None:
    assert {path.suffix for path in (finished / WORK).iterdir()} == {".lock"}


def test_a_unit_that_will_not_fit_is_not_begun(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a unit it is known what one takes; twice that must be free for the next."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    out = tmp_path / "out"
    with pytest.raises(ArtifactError, match=r"0\.0 MB are free, expected .*: free space on that"):
        label(images, out)
    assert len(list(recorded_units(out))) == 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert label(images, out).remaining == 0


def test_linked_folders_are_searched_on_demand(images: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "linked", tmp_path / "out"
    folder.mkdir()
    (folder / "there").symlink_to(images)
    with pytest.raises(DataError, match="no images in"):
        label(folder, out)
    assert label(folder, out, follow_links=True).labelled == COUNT - 2
    with pytest.raises(ConfigError, match="different images"):
        label(folder, out)
