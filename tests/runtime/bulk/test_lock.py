"""Who may work in a folder, and who may not."""

import errno
import fcntl
import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from local_model import LocalModel
from small_jobs import COUNT, in_group, label, results

from wsss.errors import ConfigError
from wsss.runtime.bulk import run
from wsss.runtime.bulk.plan import Settings
from wsss.runtime.bulk.run import Shard, finish_job
from wsss.runtime.bulk.work.lock import are_kept, one_shard, whole_job


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


def test_who_had_the_folder_before_is_not_named(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    label(images, out)
    with one_shard(out, 0, 2), pytest.raises(ConfigError, match="is being written by other shards"):
        finish_job(out)


def test_shards_of_two_counts_only_follow_each_other(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    taken = rf"process {os.getpid()} on .* \(shard-0-of-3\): wait for it or end it"
    with one_shard(out, 0, 3):
        with pytest.raises(ConfigError, match=taken):
            label(images, out, shard=Shard(1, 2))
        label(images, out, shard=Shard(1, 3))
    label(images, out, shard=Shard(0, 2))
    label(images, out, shard=Shard(1, 2))
    assert finish_job(out).labelled == COUNT - 2


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks(
    code: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert are_kept(tmp_path)

    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert not are_kept(tmp_path)
    out = tmp_path / "out"
    for index in range(2):
        label(images, out, shard=Shard(index, 2))
    assert finish_job(out).labelled == COUNT - 2


def test_a_call_that_is_refused_removes_nothing_of_another_that_began_meanwhile(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with ExitStack() as other:

        def begin_another(folder: Path) -> None:
            other.enter_context(whole_job(folder))
            (out / "inputs").mkdir()

        monkeypatch.setattr(run, "require_place", begin_another)
        with pytest.raises(ConfigError, match="is being written by process"):
            label(images, out)
        assert (out / "inputs").is_dir()


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
    finish_job(out)
    assert results(out) == expected
