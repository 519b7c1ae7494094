"""Files in and out, without trust on the way in and without halves on the way out."""

import errno
import hashlib
import io
import os
import secrets
import shutil
import stat
from pathlib import Path

from ...errors import ArtifactError, DataError, WsssError

_SUFFIXES = ".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .gif .ppm .pgm .pbm"
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())
"""Extensions of image files, in lower case."""

CODES = {
    "missing": "the file is not there any more",
    "changed": "size or time of change differ from when the list was frozen",
    "not-a-file": "a folder, pipe, socket or device that has an image's name",
    "bad-name": "the system cannot open a file of this name",
    "unreadable": "no permission, a disk error, or a server that does not answer as it should",
    "empty": "0 bytes",
    "not-an-image": "no format that can be read: JPEG, PNG, WebP, TIFF, BMP, GIF or PPM",
    "truncated": "cut short or damaged",
    "too-large": "more pixels or bytes than allowed",
    "unsupported-depth": "other than 8 or 16 bits a channel, or more than 4 channels",
    "out-of-memory": "decoding or labelling it needs more memory than there is",
    "worker-died": "a process ended when it worked on this image alone",
    "timeout": "it took longer than an image may take",
    "model-failed": "the model refused it, or gave NaN",
}
"""Code of each reason, as records and `failures.csv` have it, and what it means."""


class BadFile(DataError):
    """A file that cannot be used.

    Attributes:
        code: a key of `CODES`.
    """

    def __init__(self, code: str, message: str) -> None:
        if code not in CODES:
            raise ValueError(f"unknown code {code!r}")
        super().__init__(code, message)  # both, so that it travels between processes
        self.code = code

    def __str__(self) -> str:
        return str(self.args[1])


class BadImage(BadFile):
    """An image that is set aside; the others of its job go on."""


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    """Writes a file so that at any moment either the old or the whole new content is there.

    Args:
        path: missing folders are made.
        data: the content.
        durable: flush it to the disk before the name appears, so that this holds for a power cut
            as well; else the caller flushes many files at once.

    Raises:
        ArtifactError: disk full, read-only, no permission; nothing is left behind.
    """
    target = Path(path)
    # Not derived from the target's name, which may already have the longest length allowed.
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise write_error(target, error) from error


def append_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Adds to the end of a file, for records that are read up to the last whole one.

    Raises:
        ArtifactError: see `atomic_write_bytes`; a part of `data` may have been written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "ab") as file:
            file.write(data)
    except OSError as error:
        raise write_error(target, error) from error


def make_folder(path: str | os.PathLike[str]) -> None:
    """Makes a folder and those above it, where they are missing.

    Raises:
        ArtifactError: a file is in the way, no permission, disk full.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def replace_folder(work: Path, target: Path) -> None:
    """Give a finished folder its name; an older one of that name goes only then.

    Args:
        work: from `tempfile.mkdtemp`, beside the target.

    Raises:
        OSError: as the system says it; see `write_error`.
    """
    work.chmod(0o755)  # mkdtemp's folder is private
    older = work.with_name(f"{work.name}.older")
    try:
        if target.exists():
            target.rename(older)
        work.rename(target)
    except BaseException:  # an interrupt, too
        if older.exists() and not target.exists():
            older.rename(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(older, ignore_errors=True)


def write_error(path: str | os.PathLike[str], error: OSError) -> WsssError:
    """The one line that tells why a file could not be written, and what would help."""
    remedy = {
        errno.ENOSPC: "free space on that disk or write to another folder",
        errno.EDQUOT: "free space in your quota or write to another folder",
        errno.EROFS: "write to another folder",
        errno.EACCES: "make its folder writable or write to another one",
        errno.EPERM: "make its folder writable or write to another one",
        errno.ENAMETOOLONG: "use a shorter name",
        errno.ENOTDIR: "one of the folders in it is a file, choose another path",
        errno.EISDIR: "a folder has this name, choose another one",
        errno.EEXIST: "a file has the name of a folder, choose another path",
        errno.EFBIG: "the system limits how large files may be, raise the limit",
    }.get(error.errno or 0, "check the disk or write to another folder")
    return ArtifactError(f"cannot write {os.fspath(path)!r}: {error.strerror or error}: {remedy}")


def read_file(path: str | os.PathLike[str], *, max_bytes: int) -> bytes:
    """The content of a regular file; pipes, devices and folders are refused without blocking.

    Raises:
        BadFile: absent, not a regular file, unreadable or larger than `max_bytes`.
    """
    name = os.fspath(path)
    with open_regular(name) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > max_bytes:
            raise BadFile(
                "too-large", f"{name!r} has {num_bytes} bytes, expected at most {max_bytes}"
            )
        try:
            return file.read(max_bytes)
        except OSError as error:
            raise read_error(name, error) from error


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A regular file, opened to read its bytes; see `read_file` for what is refused."""
    name = os.fspath(path)
    try:
        # A pipe without a writer would block for ever.
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        raise read_error(name, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadFile("not-a-file", f"{name!r} is not a regular file: replace it or take it out")
    return open(descriptor, "rb")


def read_error(name: str, error: OSError | ValueError) -> BadFile:
    """The one line that tells why a file could not be read; ValueError: its name has a NUL."""
    if isinstance(error, ValueError):
        return BadFile("bad-name", f"cannot read {name!r}: {error}")
    code = {
        errno.ENOENT: "missing",
        errno.ENOTDIR: "missing",
        errno.EISDIR: "not-a-file",
        errno.ENXIO: "not-a-file",  # a socket
        errno.ENODEV: "not-a-file",  # a device that nothing drives
        errno.ENAMETOOLONG: "bad-name",
        errno.EILSEQ: "bad-name",
        errno.ELOOP: "bad-name",
    }.get(error.errno or 0, "unreadable")
    remedy = {
        "missing": "check the path",
        "not-a-file": "give a file",
        "bad-name": "use another name",
        "unreadable": "check the disk and who may read there",
    }[code]
    return BadFile(code, f"cannot read {name!r}: {error.strerror or error}: {remedy}")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder of npz and png files."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
