"""Full disks, readers that leave, absent packages: one line, exit code 1, and nothing lost."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import Outcome, picture, train, wsss
from tiny_run import files_of

# Full disks


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file grows beyond this size: what is written meets an error, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("num_bytes", [0, 100, 1000, 4000, 20_000])
def test_training_that_cannot_write(
    num_bytes: int, tiny_data: Path, recipe_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with largest_file(num_bytes):
        outcome = train(tiny_data, recipe_file, out, "--stages", "cam")
    line = outcome.line()
    assert f"cannot write '{out}" in line and os.strerror(errno.EFBIG) in line
    assert not list(out.rglob("*.tmp"))
    train(tiny_data, recipe_file, out, "--stages", "cam").succeeded()


def test_labelling_that_cannot_write(run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("label", photos, "--model", run, "--out", out)
    wsss(*arguments).succeeded()

    def finished() -> dict[str, bytes]:
        return files_of(out, "masks/**/*", "units/*", ".work/*/*")

    before = finished()
    picture(2).resize((900, 700)).save(photos / "large.png")
    with largest_file(len(before["masks/photo 0.png"])):
        line = wsss(*arguments, "--append").line()
    assert f"cannot write '{out}" in line
    assert finished() == before
    outcome = wsss(*arguments, "--append").succeeded()
    assert "1 labelled, 2 kept, 0 failed" in outcome.out


def on_small_disk(folder: Path, kib: int, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Call the command where `folder` is a disk of this size; it is empty again afterwards."""
    script = 'mount -t tmpfs -o size="$1k" tmpfs "$2" || exit 99; shift 2; exec "$@"'
    command = [sys.executable, "-m", "wsss", *map(str, arguments)]
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script, "sh", str(kib), str(folder), *command],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("needs `unshare` to mount a small disk")
    if done.returncode == 99 or "unshare:" in done.stderr:
        pytest.skip(f"mounting a small disk is not allowed: {done.stderr.strip()}")
    return done


@pytest.mark.parametrize("kib", [16, 1000])
def test_full_disk(kib: int, run: Path, tiny_data: Path, recipe_file: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = on_small_disk(
        disk, kib, "train", recipe_file, "--data", tiny_data, "--out", disk / "run"
    )
    line = Outcome(done.returncode, done.stdout, done.stderr).line()
    assert f"cannot write '{disk}" in line and "No space left" in line and "free space" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("form", ["--json", "table"])
def test_results_that_cannot_be_written(form: str, tiny_data: Path) -> None:
    command = [sys.executable, "-m", "wsss", "data", str(tiny_data)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command + [form] * (form == "--json"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert "No space left on device" in Outcome(done.returncode, "", done.stderr).line()


def test_reader_that_left(tiny_data: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "wsss", "data", str(tiny_data), "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 1
    assert all("images:" in line for line in done.stderr.splitlines())


# Packages


@pytest.mark.parametrize("arguments", ["train demo --data X --out X", "eval X --data X"])
def test_absent_torch(arguments: str, tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from wsss.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    line = Outcome(done.returncode, done.stdout, done.stderr).line()
    assert line == "wsss: torch is not installed: pip install 'wsss[train]'"


def test_bugs_keep_their_traceback(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("wsss.training.data.inspect.inspect", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        wsss("data", tiny_data)


def test_names_that_are_odd(own_data: Path) -> None:
    """Markup, emoji codes, line ends and bytes that are not UTF-8 in names do no harm."""
    folder = own_data / "JPEGImages"
    shutil.copy(folder / "train_0.png", folder / os.fsdecode(b"[b] :cat: \xff\n.png"))
    for name in ("labels.csv", "classes.txt"):
        path = own_data / name
        path.write_text(path.read_text().replace("disc", "[/red]"))
    command = [sys.executable, "-m", "wsss", "data", str(own_data)]
    for encoding in ("utf-8", "ascii"):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run(command, capture_output=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        assert rb"[b] :cat: \udcff" in done.stdout and b"[/red]" in done.stdout
        printed = subprocess.run([*command, "--json"], capture_output=True, env=environment)
        assert "[/red]" in json.loads(printed.stdout)["classes"]
