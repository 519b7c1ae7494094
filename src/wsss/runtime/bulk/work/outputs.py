"""Where the files of a unit go: single files in folders, or one tar a unit."""

import io
import json
import tarfile
import threading
from collections.abc import Mapping
from typing import Protocol

from ...io.files import write_error
from ...io.staging import Staging

SHARDS = "shards"


class Sink(Protocol):
    """Takes files in any order, from any thread."""

    def put(self, index: int, path: str, data: bytes) -> None:
        """A file of an image."""

    def commit(self) -> None:
        """Everything is on the disk afterwards."""


class FolderSink:
    """Every file by itself."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging

    def put(self, index: int, path: str, data: bytes) -> None:
        """See `Sink.put`."""
        self._staging.put(path, data)

    def commit(self) -> None:
        """See `Sink.commit`."""
        self._staging.sync()


class TarSink:
    """One tar a unit, in the layout of webdataset: `000000042.masks.png`, `000000042.json`.

    The key of a sample is its place in the job's list, because a name may hold dots, which end a
    key there; the name stands in the JSON. What comes waits in a file beside the tar: threads
    finish in any order, and scores of a thousand images are more than a machine's memory.
    """

    def __init__(self, staging: Staging, unit: str, names: Mapping[int, str]) -> None:
        self._staging, self._unit, self._names = staging, unit, names
        self._waiting: list[tuple[int, str, int, int]] = []
        self._lock = threading.Lock()
        self._spool_path = staging.work / "spool"
        self._end = 0

    def put(self, index: int, path: str, data: bytes) -> None:
        """See `Sink.put`."""
        with self._lock:
            try:
                with open(self._spool_path, "ab") as spool:
                    spool.write(data)
            except OSError as error:
                raise write_error(self._spool_path, error) from error
            self._waiting.append((index, path, self._end, len(data)))
            self._end += len(data)

    def commit(self) -> None:
        """See `Sink.commit`."""
        self._spool_path.touch()
        target = f"{SHARDS}/{self._unit}.tar"
        finished = self._staging.work / "shard"
        try:
            with (
                open(self._spool_path, "rb") as spool,
                tarfile.open(finished, "w", format=tarfile.PAX_FORMAT) as tar,
            ):
                told = -1
                for index, path, start, size in sorted(self._waiting):
                    if index != told:
                        name = json.dumps({"name": self._names[index]}).encode("ascii")
                        _add(tar, f"{index:09d}.json", io.BytesIO(name), len(name))
                        told = index
                    spool.seek(start)
                    _add(tar, f"{index:09d}.{_extension(path)}", spool, size)
        except OSError as error:
            raise write_error(finished, error) from error
        self._staging.adopt(finished, target)
        self._staging.sync()


def _add(tar: tarfile.TarFile, path: str, content: io.BufferedIOBase, size: int) -> None:
    # Owner, mode and time are those of a new TarInfo: the same everywhere.
    member = tarfile.TarInfo(path)
    member.size = size
    tar.addfile(member, content)


def _extension(path: str) -> str:
    """`masks/a/b.png` -> `masks.png`"""
    return f"{path.split('/', 1)[0]}.{path.rsplit('.', 1)[1]}"
