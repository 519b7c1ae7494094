"""Images inside of tar files: where their bytes are, for workers to read without tarfile."""

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

from ....errors import DataError
from ...io.files import IMAGE_SUFFIXES
from .folder_scan import Skip, has_suffix

_BLOCK = 512


class Member(NamedTuple):
    """An image of a tar; span: first byte and number of bytes."""

    name: str
    span: tuple[int, int]


def image_members(file: BinaryIO, path: str, skip: Skip) -> Iterator[Member]:
    """Images of an uncompressed tar, in its order; folders, other files and hidden ones pass by.

    Links, devices, sparse members, and names that lead out of a folder, are left out and told to
    `skip` when they are called like images.

    Raises:
        DataError: no tar, compressed, or damaged.
    """
    try:
        size = file.seek(0, 2)
        file.seek(0)
        with tarfile.open(
            fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps all of them
                whole = info.isreg() and not info.issparse()
                if whole and info.offset_data + info.size > size:
                    raise tarfile.ReadError("it ends inside of a member")
                member = _image(info, path, skip)
                if member is not None:
                    yield member
            # A header that is no header ends tarfile's loop like the end mark does.
            file.seek(tar.offset)
            if file.read(_BLOCK).strip(b"\0"):
                raise tarfile.ReadError(f"byte {tar.offset} begins no member")
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path!r} is no whole, uncompressed tar file ({error}): make it again, or take it out"
        ) from error


def _image(info: tarfile.TarInfo, path: str, skip: Skip) -> Member | None:
    name = PurePosixPath(info.name)
    if info.isdir() or name.name.startswith(".") or not has_suffix(info.name, IMAGE_SUFFIXES):
        return None
    if name.is_absolute() or ".." in name.parts or "\0" in info.name:
        reason = "its name leads out of the folder"
    elif info.issparse():
        reason = "it is stored with holes"
    elif not info.isreg():
        reason = "a link or device, no file"
    else:
        return Member(str(name), (info.offset_data, info.size))
    skip(f"{path}:{info.name}", reason)
    return None
