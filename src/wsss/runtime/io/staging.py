"""Files of a unit of work: under their names at once or not at all, on the disk all together.

A flush for each file costs milliseconds; one `syncfs` for a thousand files costs little more than
one of them. A unit counts only by its record, which is written after that.
"""

import ctypes
import itertools
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from .files import make_folder, write_error

WORK = ".work"
"""Folder of an output for files that have no name yet."""


class Staging:
    """Writes files below a folder for one unit; several threads may use it."""

    def __init__(self, root: Path, unit: str) -> None:
        """
        Args:
            unit: a name; what an earlier, killed one of this name has left is removed.
        """
        # A worker whose job was killed may still be at this unit: it must not meet our files.
        for left in (root / WORK).glob(f"{unit}-*"):
            shutil.rmtree(left, ignore_errors=True)
        self._root, self.work = root, root / WORK / f"{unit}-{secrets.token_hex(4)}"
        self._numbers = itertools.count()
        self._folders: set[Path] = set()
        self._written: list[Path] = []
        self._sizes: list[int] = []
        make_folder(self.work)

    def put(self, path: str, data: bytes) -> None:
        """Write a file, or replace it; durable after `sync`.

        Args:
            path: relative to the root.

        Raises:
            ArtifactError: disk full, read-only, no permission; an older file is left as it was.
        """
        temporary = self.work / f"{next(self._numbers)}.tmp"
        try:
            temporary.write_bytes(data)
        except OSError as error:
            raise write_error(self._root / path, error) from error
        self.adopt(temporary, path)

    def adopt(self, finished: Path, path: str) -> None:
        """Give a file of the folder `work` its name; see `put`."""
        target = self._root / path
        try:
            if target.parent not in self._folders:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._folders.add(target.parent)
            self._sizes.append(finished.stat().st_size)
            os.replace(finished, target)
        except OSError as error:
            raise write_error(target, error) from error
        self._written.append(target)

    @property
    def num_bytes(self) -> int:
        """Of all files that got their names."""
        return sum(self._sizes)

    def sync(self) -> None:
        """Everything that was put is on the disk afterwards, names included.

        Raises:
            ArtifactError: the disk does not take it.
        """
        sync_all(self._root, [*self._written, *self._folders])
        self._written.clear()

    def close(self) -> None:
        """Remove what has no name."""
        shutil.rmtree(self.work, ignore_errors=True)


def sync_all(folder: Path, paths: Iterable[Path]) -> None:
    """Files and folders are on the disk afterwards: by one call for all where the system has it.

    Args:
        folder: on the file system of all of them.

    Raises:
        ArtifactError: the disk does not take them.
    """
    try:
        if not _sync_file_system(folder):
            for path in paths:
                _sync_file(path)
    except OSError as error:
        raise write_error(folder, error) from error


def write_durably(path: Path, data: bytes | Iterable[bytes], work: Path) -> None:
    """Write a file that is on the disk with its name when this returns.

    Args:
        data: the content, or its pieces one after the other.
        work: folder for it while it has no name, on the same file system.

    Raises:
        ArtifactError: see `Staging.put`.
    """
    # Two processes may write the same file: a job that ends, and somebody who wants its report.
    temporary = work / f"{secrets.token_hex(8)}.tmp"
    try:
        work.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_file(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file_system(folder: Path) -> bool:
    """Flush the file system that holds a folder; False where the system has no such call."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)
    return True
