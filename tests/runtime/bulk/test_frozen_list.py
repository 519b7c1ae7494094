"""The frozen list: the same for the same images, whole or not there, and trusted in nothing."""

import gzip
import hashlib
import json
import os
import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsss.errors import ArtifactError, DataError
from wsss.runtime.bulk.image_list import frozen_list
from wsss.runtime.bulk.image_list.frozen_list import FrozenList, freeze, open_list, unit_size_for
from wsss.runtime.bulk.image_list.given_labels import image_refs
from wsss.runtime.bulk.image_list.output_names import NamedImages
from wsss.runtime.bulk.inputs.images import ImageRef
from wsss.runtime.bulk.inputs.sources import Found
from wsss.runtime.io import staging as durable


def refs(count: int, first: int = 0) -> list[ImageRef]:
    return [
        ImageRef(f"a/{n}.jpg", f"/in/a/{n}.jpg", f"a/{n}", None, (n, (n - 50) * 10**15 // 7), None)
        for n in range(first, first + count)
    ]


STRANGE = [
    ImageRef("\udcff\n\"'.jpg", "/in/\udcff\n\"'.jpg", "\udcff\n\"'", (512, 0), None, ()),
    ImageRef("日本/😀.png", "s3://b/日本/😀.png", "日本/😀", None, (2**40, 0), (0, 3, 19)),
]


@pytest.mark.parametrize(
    ("count", "size"),
    [(0, 8), (1, 8), (512, 8), (513, 9), (65_536, 1024), (65_537, 1024), (10_000_000, 1024)],
)
def test_unit_size(count: int, size: int) -> None:
    assert unit_size_for(count) == size


def test_units_are_what_was_frozen(tmp_path: Path) -> None:
    images = refs(9) + STRANGE
    frozen = freeze(iter(images), tmp_path / "inputs", 4)
    found = open_list(tmp_path / "inputs", frozen.digest)
    assert found == frozen and len(found) == 11 and found.num_units == 3
    assert [found.first(number) for number in range(3)] == [0, 4, 8]
    assert found.unit(1) == images[4:8] and found.unit(2) == images[8:]
    assert list(found) == images
    names = {path.name for path in (tmp_path / "inputs").iterdir()}
    assert names == {
        *(f"0000{number}.jsonl.gz" for number in range(3)),
        f"index.{frozen.digest}.json",
    }


def test_it_travels_to_other_processes(tmp_path: Path) -> None:
    frozen = freeze(refs(9), tmp_path, 4)
    list(frozen.unlisted(refs(10)))
    assert pickle.loads(pickle.dumps(frozen)) == frozen


@pytest.mark.parametrize("at_once", [False, True])
def test_all_is_on_the_disk_before_the_index_is_there(
    at_once: bool, tmp_path: Path, monkeypatch
) -> None:
    """The order of calls that a power cut needs; whether the disk obeys is not seen here."""
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def noting_replace(source: str, target: str) -> None:
        calls.append(("rename", Path(target).name))
        replace(source, target)

    def noting_syncfs(folder: Path) -> bool:
        if at_once:
            calls.append(("syncfs", folder.name))
        return at_once

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    monkeypatch.setattr(durable, "_sync_file_system", noting_syncfs)
    frozen = freeze(refs(9), tmp_path / "inputs", 4)
    parts = [f"0000{number}.jsonl.gz" for number in range(3)]
    index = calls.index(("rename", f"index.{frozen.digest}.json"))
    flushes = [("syncfs", "inputs")] if at_once else [("fsync", p) for p in [*parts, "inputs"]]
    assert calls[: index - 1] == [*(("rename", p) for p in parts), *flushes]
    assert calls[index - 1][0] == "fsync" and calls[index + 1 :] == flushes[-1:]


def test_the_same_images_give_the_same_files(tmp_path: Path) -> None:
    first = freeze(refs(20), tmp_path / "a", 8)
    os.utime(tmp_path / "a")
    second = freeze(refs(20), tmp_path / "b", 8)
    assert first.digest == second.digest
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    others = [freeze(refs(20), tmp_path / "c", 9), freeze(refs(19), tmp_path / "d", 8)]
    others.append(freeze(refs(20)[::-1], tmp_path / "e", 8))
    assert len({first.digest, *(other.digest for other in others)}) == 4


def test_one_unit_is_in_memory_at_a_time(tmp_path: Path) -> None:
    def stream() -> Iterator[ImageRef]:
        for start in range(0, 20_000, 100):
            yield from refs(100, start)

    tracemalloc.start()
    try:
        frozen = freeze(stream(), tmp_path, 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert frozen.num_units == 200
    assert peak < 1_000_000  # all of them take about 8 MB


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(9))
def test_a_killed_freeze_leaves_no_list_and_can_be_repeated(
    at: int, tmp_path: Path, monkeypatch
) -> None:
    """Stops before every rename: four parts and the index, over a list that was there."""
    folder = tmp_path / "inputs"
    old = freeze(refs(30), folder, 4)
    renames = 0
    replace = os.replace

    def stopping(source: str, target: str) -> None:
        nonlocal renames
        if renames == at:
            raise Killed
        renames += 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopping)
    if at < 5:
        with pytest.raises(Killed):
            freeze(refs(16, 100), folder, 4)
        assert not list(folder.glob("index.*"))
        with pytest.raises(ArtifactError, match="is gone"):
            open_list(folder, old.digest)
    monkeypatch.setattr(os, "replace", replace)
    (folder / ".0123456789abcdef.tmp").write_bytes(b"half")  # what a kill -9 leaves
    again = freeze(refs(16, 100), folder, 4)
    assert list(open_list(folder, again.digest)) == refs(16, 100)
    assert len(list(folder.iterdir())) == 5


def test_faults_while_images_are_found_leave_no_list(tmp_path: Path) -> None:
    def failing() -> Iterator[ImageRef]:
        yield from refs(10)
        raise DataError("a folder cannot be read")

    with pytest.raises(DataError, match="a folder"):
        freeze(failing(), tmp_path, 4)
    assert not list(tmp_path.glob("index.*"))
    with pytest.raises(DataError, match="no images to label"):
        freeze([], tmp_path, 4)
    assert not list(tmp_path.iterdir())


def test_a_list_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match="cannot write"):
        freeze(refs(1), tmp_path / "file", 4)


def test_append_adds_units_and_moves_none(tmp_path: Path) -> None:
    old = freeze(refs(10), tmp_path, 4)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    new = old.append([*refs(10)[::-1], *refs(6, 8), *STRANGE])
    assert new.parts[: old.num_units] == old.parts
    assert list(new) == refs(14) + STRANGE
    assert [new.first(number) for number in range(new.num_units)] == [0, 4, 8, 10, 14]
    assert open_list(tmp_path, new.digest) == new
    for name, data in before.items():
        assert (tmp_path / name).read_bytes() == data
    assert list(open_list(tmp_path, old.digest)) == refs(10)  # until the job says otherwise
    assert new.append([*STRANGE, *refs(14)]) is new
    newest = new.append(refs(1, 50))
    assert list(open_list(tmp_path, newest.digest)) == refs(14) + STRANGE + refs(1, 50)


def test_append_beside_outputs_that_exist(tmp_path: Path) -> None:
    """The whole way, with old images among those that are found again."""

    def listed(names: list[str], old: FrozenList | None) -> FrozenList:
        found = [Found(name, f"/in/{name}") for name in names]
        new = found if old is None else old.unlisted(found)
        beside = () if old is None else (ref.output for ref in old)
        with NamedImages(new, tmp_path, beside=beside) as named:
            images = image_refs(named, None, ())
            if old is None:
                return freeze(images, tmp_path / "inputs", 4)
            return old.append(images)

    first = listed(["a.jpg", "b.jpg", "B.jpg", "c.jpg", "k/d.jpg"], None)
    again = listed(["A.png", "a.jpg", "b.jpg", "B.jpg", "c.jpg", "e.jpg", "k/d.jpg"], first)
    outputs = [ref.output for ref in again]
    assert outputs[:5] == [ref.output for ref in first]
    assert outputs[5:] == ["A.png", "e"]
    assert listed(["a.jpg", "b.jpg"], again) is again


def test_append_compares_names_and_not_only_their_hashes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(frozen_list, "name_hash", lambda name: len(name) % 3)
    old = freeze(refs(10), tmp_path, 4)
    assert list(old.append(refs(20))) == refs(20)


def test_a_killed_append_leaves_the_old_list(tmp_path: Path, monkeypatch) -> None:
    old = freeze(refs(10), tmp_path, 4)

    def failing() -> Iterator[ImageRef]:
        yield from refs(9, 10)
        raise Killed

    with pytest.raises(Killed):
        old.append(failing())
    assert list(open_list(tmp_path, old.digest)) == refs(10)
    assert list(old.append(refs(3, 10))) == refs(13)


def test_damaged_parts_are_refused(tmp_path: Path) -> None:
    frozen = freeze(refs(12), tmp_path, 4)
    path = tmp_path / "00001.jsonl.gz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    bad = {
        "cut": whole[:-9],
        "flipped": bytes(flipped),
        "of another unit": (tmp_path / "00002.jsonl.gz").read_bytes(),
        "longer": whole + whole,
        "empty": b"",
        "a bomb": gzip.compress(b"\n" * 50_000_000, mtime=0),
    }
    for what, data in bad.items():
        path.write_bytes(data)
        assert frozen.unit(0) == refs(4) and frozen.unit(2) == refs(4, 8)
        with pytest.raises(ArtifactError, match=r"00001.*damaged or was exchanged"):
            pytest.fail(f"{what}: {frozen.unit(1)}")
    path.unlink()
    with pytest.raises(ArtifactError):
        frozen.unit(1)
    path.mkdir()
    with pytest.raises(ArtifactError):
        frozen.unit(1)


def forged(folder: Path, rows: list[object], **changes: object) -> str:
    """A list with digests that are right, as a stranger can make one."""
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    (folder / "00000.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
    part = [len(rows), len(data), hashlib.sha256(data).hexdigest()]
    index = {"format": 1, "unit_size": 8, "parts": [part], **changes}
    text = json.dumps(index).encode()
    digest = hashlib.sha256(text).hexdigest()
    (folder / f"index.{digest}.json").write_bytes(text)
    return digest


GOOD = ["a.jpg", "/in/a.jpg", "a", [0, 5], [5, 6], [0, 2]]


def test_a_forged_list_that_is_right_is_taken(tmp_path: Path) -> None:
    (found,) = open_list(tmp_path, forged(tmp_path, [GOOD]))
    assert found == ImageRef("a.jpg", "/in/a.jpg", "a", (0, 5), (5, 6), (0, 2))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((0, value) for value in (1, None, "", ["a"])),
        *((1, value) for value in (1, None, "")),
        *((2, value) for value in ("", "/a", "a/", "../a", "a/../b", ".", "a//b", "a/./b", 1)),
        *((2, value) for value in ("a\0", "..\\a", "a\\b")),
        *((3, value) for value in (5, [1], [1, 2, 3], [-1, 2], [1.0, 2], [True, 2], "ab", {})),
        *((4, value) for value in ([1], [-1, 0], [0, 1 << 64], [0, 1.5], [None, 1])),
        *((5, value) for value in ([-1], [1, 0], [1, 1], [254], ["a"], [1.0], [False], 3, "a")),
    ],
)
def test_forged_images_are_refused(place: int, value: object, tmp_path: Path) -> None:
    row = [*GOOD[:place], value, *GOOD[place + 1 :]]
    found = open_list(tmp_path, forged(tmp_path, [row]))
    with pytest.raises(ArtifactError, match="damaged or was exchanged"):
        found.unit(0)


@pytest.mark.parametrize("row", [None, [], GOOD[:5], [*GOOD, 1], {"name": "a"}, "abcdef", 1])
def test_forged_rows_are_refused(row: object, tmp_path: Path) -> None:
    found = open_list(tmp_path, forged(tmp_path, [row]))
    with pytest.raises(ArtifactError, match="damaged or was exchanged"):
        found.unit(0)


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": []},
        {"parts": [[1, 50]]},
        {"parts": [[0, 50, "00"]]},
        {"parts": [[1.0, 50, "00"]]},
        {"parts": [[1, 1 << 60, "00"]]},
        {"parts": [[9, 50, "00"]]},
        {"parts": [[1, 50, None]]},
        {"parts": 5},
        {"unit_size": "8"},
        {"unit_size": 0},
        {"unit_size": 1 << 40},
    ],
)
def test_forged_indices_are_refused(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="damaged or was exchanged"):
        open_list(tmp_path, forged(tmp_path, [GOOD], **changes))


def test_lists_that_cannot_be_opened(tmp_path: Path) -> None:
    frozen = freeze(refs(3), tmp_path, 4)
    for digest in ("../../etc/passwd", "", "0" * 63, "G" * 64):
        with pytest.raises(ArtifactError, match="no digest"):
            open_list(tmp_path, digest)
    with pytest.raises(ArtifactError, match="is gone"):
        open_list(tmp_path, "0" * 64)
    with pytest.raises(ArtifactError, match="format 2, expected 1"):
        open_list(tmp_path, forged(tmp_path, [GOOD], format=2))
    path = tmp_path / f"index.{frozen.digest}.json"
    path.write_bytes(path.read_bytes().replace(b"4", b"5", 1))
    with pytest.raises(ArtifactError, match="damaged"):
        open_list(tmp_path, frozen.digest)
