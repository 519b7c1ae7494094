"""Reading an image of the list: its bytes, or the code of what is wrong with it."""

import errno
import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from wsss.errors import MissingDependencyError
from wsss.runtime.bulk.inputs.images import ImageRef, read_bytes, read_pixels
from wsss.runtime.bulk.inputs.sources import find
from wsss.runtime.io.files import CODES, BadFile, BadImage


def picture(value: int = 7) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def ref_of(source: Path | str) -> ImageRef:
    (found,) = find([source], leave_out=None)
    return ImageRef(found.name, found.source, "x", found.span, found.stamp)


def code_of(ref: ImageRef, **options: int) -> str:
    codes = []
    for read in (read_bytes, read_pixels):
        with pytest.raises(BadImage) as caught:
            read(ref, **(options if read is read_bytes else {}))
        assert "\n" not in str(caught.value) and repr(ref.name) in str(caught.value)
        codes.append(caught.value.code)
        if options:
            break
    assert len(set(codes)) == 1
    return codes[0]


def test_codes_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(BadImage("empty", "image 'a' is empty")))
    assert type(error) is BadImage and error.code == "empty"
    assert str(error) == "image 'a' is empty"
    with pytest.raises(ValueError, match="unknown code"):
        BadFile("odd", "")
    assert len(CODES) == 14


def test_a_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "\udcff\n.png"
    path.write_bytes(picture())
    assert read_bytes(ref_of(path)) == picture()
    assert (read_pixels(ref_of(path)) == np.full((6, 8, 3), 7, np.uint8)).all()


def test_a_file_that_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture())
    ref = ref_of(path)
    _, mtime = ref.stamp
    os.utime(path, ns=(0, mtime + 1))
    assert code_of(ref) == "changed"
    os.utime(path, ns=(0, mtime))
    assert read_bytes(ref) == picture()
    path.write_bytes(picture() + b"more")
    os.utime(path, ns=(0, mtime))
    assert code_of(ref) == "changed"
    assert read_bytes(replace(ref, stamp=None)) == picture() + b"more"
    path.unlink()
    assert code_of(ref) == "missing"


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture())
    ref = ref_of(path)
    fstat = os.fstat
    calls = 0

    def changing(descriptor: int) -> os.stat_result:
        nonlocal calls
        calls += 1
        if calls == 3:  # regular? as it was? still as it was?
            os.utime(path, ns=(0, 5))
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", changing)
    with pytest.raises(BadImage) as caught:
        read_bytes(ref)
    assert caught.value.code == "changed"


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "nowhere.jpg").symlink_to("absent")
    (tmp_path / "file").write_bytes(b"")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.jpg"))
    expected = {
        "pipe.jpg": "not-a-file",
        "folder.jpg": "not-a-file",
        "null.jpg": "not-a-file",
        "socket.jpg": "not-a-file",
        "loop.jpg": "bad-name",
        "nowhere.jpg": "missing",
        "absent.jpg": "missing",
        "file/x.jpg": "missing",
        "n" * 300: "bad-name",
        "nul\0.jpg": "bad-name",
    }
    for name, code in expected.items():
        assert code_of(ImageRef(name, f"{tmp_path}/{name}", "x")) == code, name


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_cannot_be_read(number: int, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture())
    ref = ref_of(path)

    def refusing(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refusing)
    assert code_of(ref) == "unreadable"


def test_limits(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture())
    ref = ref_of(path)
    assert read_bytes(ref, max_bytes=len(picture())) == picture()
    assert code_of(ref, max_bytes=len(picture()) - 1) == "too-large"
    assert code_of(replace(ref, span=(0, 50)), max_bytes=49) == "too-large"
    with pytest.raises(BadImage) as caught:
        read_pixels(ref, max_pixels=47)
    assert caught.value.code == "too-large"
    with open(tmp_path / "giant.jpg", "wb") as file:
        file.truncate(1 << 40)
    assert code_of(ref_of(tmp_path / "giant.jpg")) == "too-large"
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(BadImage) as caught:
        read_pixels(ref_of(tmp_path / "empty.jpg"))
    assert caught.value.code == "empty"


def test_members_of_tars(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(3):
            info = tarfile.TarInfo(f"k/{number}.png")
            info.size = len(picture(number))
            tar.addfile(info, io.BytesIO(picture(number)))
    members = [
        ImageRef(found.name, found.source, "x", found.span, found.stamp)
        for found in find([path], leave_out=None)
    ]
    for number, ref in enumerate(members):
        assert (read_pixels(ref) == number).all()
    assert code_of(replace(members[0], span=(512, 1 << 20))) == "truncated"
    assert code_of(replace(members[0], span=(1 << 62, 10))) == "truncated"
    with open(path, "ab") as file:
        file.write(b"\0")
    assert code_of(members[1]) == "changed"


MEMORY = """
import resource, sys
from wsss.runtime.io.files import BadImage
from wsss.runtime.bulk.inputs.images import ImageRef, read_pixels
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
try:
    read_pixels(ImageRef("a.png", sys.argv[1], "a"))
except BadImage as error:
    print(error.code)
"""


def test_too_little_memory_is_told_of_the_image(tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "a.png")], capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("out-of-memory\n", 0), done.stderr


@pytest.fixture
def memory() -> Iterator[object]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def test_urls(memory, monkeypatch) -> None:
    memory.pipe("/b/a.png", picture())
    memory.pipe("/b/k/shard.bin", b"junk" + picture(9) + b"junk")
    ref = ref_of("memory://b/a.png")
    assert ref.stamp == (len(picture()), 0)
    assert (read_pixels(ref) == 7).all()
    member = ImageRef("9.png", "memory://b/k/shard.bin", "9", (4, len(picture(9))))
    assert (read_pixels(member) == 9).all()
    assert code_of(replace(member, span=(4, 1 << 20))) == "truncated"
    assert code_of(replace(member, stamp=(5, 0))) == "changed"
    assert code_of(ref, max_bytes=10) == "too-large"
    memory.pipe("/b/a.png", picture() + b"more")
    assert code_of(ref) == "changed"
    memory.rm("/b/a.png")
    assert code_of(ref) == "missing"
    assert code_of(replace(ref, source="memory://b/k")) in ("missing", "not-a-file")

    def refusing(*arguments: object, **options: object) -> None:
        raise RuntimeError("the server\nsays no")

    monkeypatch.setattr(type(memory), "_open", refusing)
    assert code_of(member) == "unreadable"
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingDependencyError, match=r"wsss\[cloud\]"):
        read_bytes(ref)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def test_a_web_server(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        ref = ref_of(f"http://127.0.0.1:{server.server_port}/a.png")
        assert read_bytes(ref) == picture()
        # This server ignores which part is asked for: no other bytes are taken for them.
        assert code_of(replace(ref, span=(4, 10))) in ("unreadable", "truncated")
        assert code_of(ref, max_bytes=10) == "too-large"
        (tmp_path / "a.png").write_bytes(picture() + b"more")
        assert code_of(ref) == "changed"
        (tmp_path / "a.png").unlink()
        assert code_of(ref) == "missing"
    finally:
        server.shutdown()
        server.server_close()
    assert code_of(ref) == "unreadable"
