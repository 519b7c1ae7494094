"""Which images a job finds, in which order, and what it says of those it cannot take."""

import gzip
import io
import os
import random
import socket
import sys
import tarfile
import threading
import tracemalloc
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from wsss.errors import DataError, MissingDependencyError
from wsss.runtime.bulk.inputs.sources import Found, find


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))


def names(*sources: object, **options: object) -> list[str]:
    options.setdefault("leave_out", None)
    return [image.name for image in find(list(sources), **options)]


def content(image: Found) -> bytes:
    with open(image.source, "rb") as file:
        start, length = image.span or (0, -1)
        file.seek(start)
        return file.read(length)


def test_folders_are_searched_depth_first_in_byte_order(tmp_path: Path) -> None:
    expected = ["A.jpg", "a/a.JPEG", "a/b/c.png", "a/z.gif", "a.b/x.tif", "a.jpg", "b.webp"]
    # Bytes, not code points: what stands for the byte FF is a code point before the others.
    expected += ["\uffe5.jpg", "😀.jpg", "\udcff.jpg"]
    shuffled = random.Random(0).sample(expected, len(expected))
    write(tmp_path, *shuffled, "notes.txt", "a/list.csv", "shard.tar", "noext")
    assert names(tmp_path) == names(str(tmp_path) + "/") == expected
    for image in find([tmp_path], leave_out=None):
        assert os.path.isabs(image.source)
        assert content(image) == image.name.encode("utf-8", "surrogateescape")
        found = os.stat(image.source)
        assert image.stamp == (found.st_size, found.st_mtime_ns) and image.span is None


def test_hidden_files_and_the_output_folder_are_passed_by(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "._a.jpg", ".h.jpg", "out/b.png", "x/out/c.jpg", ".jpg")
    write(tmp_path, ".Trash/d.jpg", "x/.thumbnails/k/e.jpg")
    assert names(tmp_path, leave_out=tmp_path / "out") == ["a.jpg", "x/out/c.jpg"]
    (tmp_path / "link").symlink_to(tmp_path / "out")
    assert names(tmp_path, leave_out=tmp_path / "link") == ["a.jpg", "x/out/c.jpg"]
    assert names(tmp_path, leave_out=tmp_path / "out", follow_links=True) == [
        "a.jpg",
        "x/out/c.jpg",
    ]


def test_a_large_folder_is_in_memory_as_bytes_alone(tmp_path: Path, monkeypatch) -> None:
    """Names are Python objects a chunk at a time, and in order across chunks."""
    monkeypatch.setattr("wsss.runtime.bulk.inputs.folder_scan.CHUNK", 100)
    write(tmp_path, *(f"{number:05}.jpg" for number in range(3000)))
    images = find([tmp_path], leave_out=None)
    assert next(images).name == "00000.jpg"
    tracemalloc.start()
    try:
        assert [image.name for image in images] == [f"{n:05}.jpg" for n in range(1, 3000)]
        assert next(find([tmp_path], leave_out=None)).name == "00000.jpg"
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in find([tmp_path], leave_out=None):
            pass
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    # 11 bytes a name, twice while they are put together; a list of them alone takes 65 each.
    assert peak < 3000 * 50


def test_files_are_named_by_their_last_part(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "a/x.jpg", "b/strange.heic", "b/[1].jpg")
    monkeypatch.chdir(tmp_path)
    (first, second, third) = find(["a/../a/x.jpg", "b/strange.heic", "b/[1].jpg"], leave_out=None)
    assert first.name == "x.jpg" and first.source == os.path.realpath(tmp_path / "a/x.jpg")
    assert second.name == "strange.heic"  # given by name: it fails when it is read
    assert third.name == "[1].jpg"  # no glob where there is a file of that name
    assert names(f"file://{tmp_path}/a") == names("a") == ["x.jpg"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg"]),
        ("**/*.jpg", ["a.jpg", "k/b.jpg", "k/l/c.jpg"]),
        ("k/**", ["b.jpg", "l/c.jpg", "l/d.png"]),
        ("k/**/*.png", ["l/d.png"]),
        ("**/l/*", ["k/l/c.jpg", "k/l/d.png"]),
        ("*/l/c.???", ["k/l/c.jpg"]),
        ("[kz]", ["k/b.jpg", "k/l/c.jpg", "k/l/d.png"]),
        ("k/[!b].jpg", []),
        ("*/*/**/c.jpg", ["k/l/c.jpg"]),
        ("**/**/c.jpg", ["k/l/c.jpg"]),
        (".h/*.jpg", ["e.jpg"]),
        ("./**/b.jpg", ["k/b.jpg"]),
    ],
)
def test_globs(pattern: str, expected: list[str], tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "a.jpg", "k/b.jpg", "k/l/c.jpg", "k/l/d.png", ".h/e.jpg", "k/.i.jpg", "k/n.md")
    monkeypatch.chdir(tmp_path)
    for source in (pattern, str(tmp_path / pattern)):
        if expected:
            found = list(find([source], leave_out=None))
            assert [image.name for image in found] == expected
            assert all(os.path.samefile(f.source, tmp_path / f.source) for f in found)
        else:
            with pytest.raises(DataError, match="no images in"):
                names(source)


def test_what_is_no_regular_file_is_found_without_blocking(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "folder.jpg/inside.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "empty.png").mkdir()
    (tmp_path / "hidden.png" / "sub").mkdir(parents=True)
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "nowhere.jpg").symlink_to("absent")
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.jpg"))
    assert names(tmp_path) == [
        *("a.jpg", "empty.png", "folder.jpg/inside.png", "hidden.png", "loop.jpg"),
        *("nowhere.jpg", "null.jpg", "pipe.jpg", "socket.jpg"),
    ]


def test_links(tmp_path: Path) -> None:
    write(tmp_path, "outside/x.jpg", "in/a.jpg", "in/sub/b.jpg")
    tree = tmp_path / "in"
    (tree / "file.jpg").symlink_to(tmp_path / "outside" / "x.jpg")
    (tree / "folder").symlink_to(tmp_path / "outside")
    (tree / "named.jpg").symlink_to(tmp_path / "outside")
    (tree / "sub" / "up").symlink_to(tree)
    (tree / "sub" / "self").symlink_to(".")
    skipped: list[tuple[str, str]] = []
    assert names(tree, skip=lambda *each: skipped.append(each)) == [
        *("a.jpg", "file.jpg", "sub/b.jpg"),
    ]
    links = ("folder", "named.jpg", "sub/up", "sub/self")
    assert sorted(skipped) == sorted((str(tree / link), "a link to a folder") for link in links)
    # Each folder once, under its first name; and it ends.
    skipped.clear()
    assert names(tree, follow_links=True, skip=lambda *each: skipped.append(each)) == [
        *("a.jpg", "file.jpg", "folder/x.jpg", "sub/b.jpg"),
    ]
    assert {os.path.basename(path) for path, _ in skipped} == {"up", "self", "named.jpg"}


def test_folders_that_all_link_to_all_are_searched_once(tmp_path: Path) -> None:
    for one in range(12):
        write(tmp_path, f"{one:02}/x.jpg")
        for other in range(12):
            (tmp_path / f"{one:02}" / f"to_{other:02}").symlink_to(f"../{other:02}")
    assert len(names(tmp_path, follow_links=True)) == 12


def test_lists(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "in/a.jpg", "in/sub/# b.jpg", "other/c.jpg", "in/d\n.jpg", "in/\udcff.jpg")
    lines = ["a.jpg", "", "sub/# b.jpg", "../other/c.jpg", str(tmp_path / "in/a.jpg"), "absent.jpg"]
    path = tmp_path / "in" / "list.txt"
    elsewhere = str(tmp_path / "other/c.jpg")[1:]
    expected = ["a.jpg", "sub/# b.jpg", elsewhere, "a.jpg", "absent.jpg"]
    monkeypatch.chdir("/")  # where relative paths do not start
    for text in ("\n".join(lines), "\r\n".join(lines) + "\r\n", "\ufeff" + "\n".join(lines)):
        path.write_text(text, newline="")
        assert names(path) == expected
    path.write_bytes(b"d\n.jpg\0\xff.jpg\0")
    found = list(find([path], leave_out=None))
    assert [image.name for image in found] == ["d\n.jpg", "\udcff.jpg"]
    assert [content(image) for image in found] == [b"in/d\n.jpg", b"in/\xff.jpg"]
    many = [f"{number:0200}.jpg" for number in range(6000)]  # more than one block
    path.write_text("\n".join([*many, "a.jpg"]))
    assert names(path) == [*many, "a.jpg"]


def test_urls_of_this_machine_are_paths(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "list.txt").write_text(f"file://{tmp_path}/a.jpg\nlocal://{tmp_path}/pipe.jpg\n")
    found = list(find([tmp_path / "list.txt"], leave_out=None))
    assert [image.source for image in found] == [f"{tmp_path}/a.jpg", f"{tmp_path}/pipe.jpg"]
    assert names(f"local://{tmp_path}") == ["a.jpg", "pipe.jpg"]


def test_lists_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("photos/a.jpg\nphotos/b.jpg")
    with pytest.raises(DataError, match=r"the first is '.*photos/a\.jpg': relative paths start at"):
        names(path)
    path.write_text("x" * 100_000)
    with pytest.raises(DataError, match="list one path a line"):
        names(path)
    path.write_text("\n\n")
    with pytest.raises(DataError, match="no images in"):
        names(path)


def make_tar(path: Path, *members: str, form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form, errors="surrogateescape") as tar:
        for name in members:
            data = name.encode("utf-8", "surrogateescape") * 300
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tar_members_are_spans_of_the_file(form: int, tmp_path: Path) -> None:
    long = "d" * 150 + "/" + "n" * 200 + ".jpg"
    members = ["0002.jpg", "0001.png", "0001.cls", "a/b.webp", ".x.jpg", "./c.jpg", long, "ü.jpg"]
    members.append("\udcff.jpg" if form == tarfile.GNU_FORMAT else "y.jpg")
    make_tar(tmp_path / "t.tar", *members, form=form)
    found = list(find([tmp_path / "t.tar"], leave_out=None))
    taken = [name for name in members if name not in ("0001.cls", ".x.jpg")]
    assert [image.name for image in found] == [name.removeprefix("./") for name in taken]
    for image, name in zip(found, taken, strict=True):
        assert content(image) == name.encode("utf-8", "surrogateescape") * 300
        found_stat = os.stat(tmp_path / "t.tar")
        assert image.stamp == (found_stat.st_size, found_stat.st_mtime_ns)


def test_tars_by_glob_and_list(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    make_tar(tmp_path / "s" / "1.tar", "a.jpg")
    make_tar(tmp_path / "s" / "2.tar", "b.jpg", "c.jpg")
    write(tmp_path, "s/d.jpg")
    (tmp_path / "list.txt").write_text("s/2.tar\ns/d.jpg\n")
    assert names(str(tmp_path / "s" / "*.tar")) == ["a.jpg", "b.jpg", "c.jpg"]
    assert names(tmp_path / "list.txt") == ["b.jpg", "c.jpg", "s/d.jpg"]
    assert names(tmp_path / "s") == ["d.jpg"]  # tar files are opened when they are asked for


def test_hostile_tar_members_are_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("/abs.jpg", "../up.jpg", "a/../../up.jpg", "good.jpg"):
            tar.addfile(tarfile.TarInfo(name))
        for name, kind in [
            ("sym.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("dev.jpg", tarfile.CHRTYPE),
            ("block.jpg", tarfile.BLKTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
            ("folder.jpg", tarfile.DIRTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        sparse = tarfile.TarInfo("sparse.jpg")
        sparse.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.map": "0,0",
            "GNU.sparse.size": str(1 << 40),
        }
        tar.addfile(sparse)
    skipped: dict[str, str] = {}
    found = names(path, skip=lambda where, why: skipped.update({where.partition(":")[2]: why}))
    assert found == ["good.jpg"]
    leads_out = ["/abs.jpg", "../up.jpg", "a/../../up.jpg"]
    assert skipped == {
        **dict.fromkeys(leads_out, "its name leads out of the folder"),
        **dict.fromkeys(
            ["sym.jpg", "hard.jpg", "dev.jpg", "block.jpg", "pipe.jpg"],
            "a link or device, no file",
        ),
        "sparse.jpg": "it is stored with holes",
    }


def test_damaged_tars_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    make_tar(path, "a.jpg", "b.jpg", "c.jpg")
    data = path.read_bytes()
    spans = [image.span for image in find([path], leave_out=None)]
    second_header = spans[1][0] - 512
    broken = {
        "inside of a member": data[: spans[1][0] + 5],
        "header that is none": data[:second_header] + b"junk" * 128 + data[second_header + 512 :],
        "half a header": data[: second_header + 100],
        "no tar": b"<html>" * 500,
        "empty": b"",
        "compressed": gzip.compress(data),
    }
    for what, bad in broken.items():
        path.write_bytes(bad)
        with pytest.raises(DataError, match="no whole, uncompressed tar file") as caught:
            names(path)
        assert "\n" not in str(caught.value), what
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(DataError, match="not a regular file"):
        names(tmp_path / "pipe.tar")


def test_sources_that_are_not_there_are_told_before_any_search(tmp_path: Path) -> None:
    write(tmp_path, "in/a.jpg")
    for absent in ("absent", "absent/*.jpg", "", "a\0b"):
        images = find([tmp_path / "in", str(tmp_path / absent) if absent else ""], leave_out=None)
        with pytest.raises(DataError):
            next(images)
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match=r"no images in '.*bare': looked for \.bmp, "):
        names(tmp_path / "bare")
    with pytest.raises(DataError, match="no images in no sources"):
        names()


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "a.jpg", "closed/b.jpg")
    scandir = os.scandir

    def refusing(path: str) -> Iterator[os.DirEntry[str]]:  # root may read everything
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"cannot read folder '.*closed': Permission denied"):
        names(tmp_path)


@pytest.fixture
def memory() -> Iterator[object]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def test_urls(memory, tmp_path: Path) -> None:
    for name in ("a.jpg", "k/b.png", "k/l/c.jpg", ".h.jpg", "k/n.md"):
        memory.pipe(f"/bucket/{name}", name.encode())
    make_tar(tmp_path / "t.tar", "x.jpg", "y.jpg")
    memory.pipe("/bucket/s/t.tar", (tmp_path / "t.tar").read_bytes())
    found = list(find(["memory://bucket"], leave_out=None))
    assert [image.name for image in found] == ["a.jpg", "k/b.png", "k/l/c.jpg"]
    for image in found:
        assert image.source == f"memory:///bucket/{image.name}"
        assert image.stamp == (len(image.name), 0)
    assert names("memory://bucket/k/") == ["b.png", "l/c.jpg"]
    assert names("memory://bucket/k/b.png") == ["b.png"]
    assert names("memory://bucket/**/*.jpg") == ["a.jpg", "k/l/c.jpg"]
    for source in ("memory://bucket/s/t.tar", "memory://bucket/s/*.tar"):
        found = list(find([source], leave_out=None))
        assert [image.name for image in found] == ["x.jpg", "y.jpg"]
        for image in found:
            start, length = image.span
            data = memory.cat_file(image.source, start, start + length)
            assert data == image.name.encode() * 300
    (tmp_path / "list.txt").write_text("memory://bucket/k/b.png\n")
    assert names(tmp_path / "list.txt") == ["b.png"]
    with pytest.raises(DataError, match="no such image or folder: 'memory://bucket/absent'"):
        names("memory://bucket/absent")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_web_addresses(web: str, tmp_path: Path) -> None:
    write(tmp_path, "in/a.jpg", "in/sub/b.png")
    (found,) = find([f"{web}/in/a.jpg"], leave_out=None)
    assert found == Found("a.jpg", f"{web}/in/a.jpg", None, (8, 0))
    with pytest.raises(DataError, match="no such image or folder"):
        names(f"{web}/in/absent.jpg")
    assert names(f"{web}/in/") == ["a.jpg", "sub/b.png"]
    assert names(f"{web}/in/*.jpg") == ["a.jpg"]


def test_what_a_url_needs_is_told(monkeypatch) -> None:
    with pytest.raises(DataError, match=r"cannot open 'nothing://a/b\.jpg'"):
        names("nothing://a/b.jpg")
    with pytest.raises(MissingDependencyError, match=r"'s3://.*' needs a package: .*s3fs"):
        names("s3://bucket/a.jpg")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wsss\[cloud\]'"):
        names("s3://bucket/a.jpg")
