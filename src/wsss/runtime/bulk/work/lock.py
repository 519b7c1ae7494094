"""One job in a folder at a time; shards of one job side by side.

The locks are the system's (`flock`): they end with their process, however it ends. On a file system
that has none, or does not pass them on to other machines, two jobs waste work and may end each
other; every record tells the truth all the same, since all that belongs to a unit is the same
whoever writes it.
"""

import errno
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ....errors import ConfigError
from ...io.files import make_folder, write_error
from ...io.staging import WORK

_LOCK = ".lock"
_FREEZE_S = 3600.0
"""A list of ten million images is frozen in less time."""
_PAUSE_S = 0.2
_NO_LOCKS = frozenset((errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK))
"""What a file system without locks says: Lustre as it is mounted by default, for instance."""


@contextmanager
def whole_job(out: Path) -> Iterator[None]:
    """Nobody else works in this folder meanwhile.

    Raises:
        ConfigError: somebody does; the message tells which process.
        ArtifactError: the folder cannot be written.
    """
    with _open(out, f"job{_LOCK}") as descriptor:
        if not _try(descriptor, fcntl.LOCK_EX):
            raise _taken(out, f"job{_LOCK}")
        _sign(descriptor)
        _remove_leftovers(out)
        yield


def are_kept(out: Path) -> bool:
    """Whether the file system of a folder has locks, as far as one machine can see."""
    with whole_job(out):
        try:
            with whole_job(out):
                return False
        except ConfigError:
            return True


@contextmanager
def one_shard(out: Path, index: int, count: int) -> Iterator[None]:
    """Nobody else works on this shard, on one of another count, or on the whole job.

    Raises:
        ConfigError, ArtifactError: see `whole_job`.
    """
    name = f"shard-{index}-of-{count}{_LOCK}"
    with _open(out, f"job{_LOCK}") as job, _open(out, name) as own:
        if not _try(job, fcntl.LOCK_SH):
            raise _taken(out, f"job{_LOCK}")
        os.ftruncate(job, 0)  # who had it alone before is gone
        if not _try(own, fcntl.LOCK_EX):
            raise _taken(out, name)
        _sign(own)
        _require_same_count(out, count)
        yield


def _require_same_count(out: Path, count: int) -> None:
    """Shards of different counts share units, so they may only follow each other."""
    for path in sorted((out / WORK).glob(f"shard-*{_LOCK}")):
        if path.name.endswith(f"-of-{count}{_LOCK}"):
            continue
        with _open(out, path.name) as other:
            if not _try(other, fcntl.LOCK_SH):
                raise _taken(out, path.name)


@contextmanager
def while_freezing(out: Path) -> Iterator[None]:
    """Shards that begin together wait here for the first of them to freeze the list."""
    with _open(out, f"list{_LOCK}") as descriptor:
        end = time.monotonic() + _FREEZE_S
        while not _try(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > end:
                raise _taken(out, f"list{_LOCK}")
            time.sleep(_PAUSE_S)
        _sign(descriptor)
        yield


def _remove_leftovers(out: Path) -> None:
    """What killed workers have left: nobody else is there who could still need it."""
    for path in (out / WORK).iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != _LOCK:
            path.unlink(missing_ok=True)


@contextmanager
def _open(out: Path, name: str) -> Iterator[int]:
    path = out / WORK / name
    make_folder(path.parent)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def _taken(out: Path, name: str) -> ConfigError:
    try:
        holder = (out / WORK / name).read_text(errors="replace")[:200] or "other shards"
    except OSError:
        holder = "another process"
    part = f" ({name.removesuffix(_LOCK)})" if name.startswith("shard-") else ""
    return ConfigError(
        f"'{out}' is being written by {holder}{part}: wait for it or end it, or choose another "
        "`out`"
    )
