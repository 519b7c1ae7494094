"""Where a job's images are: folders, globs, list files, tar files and URLs, as one stream."""

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from ....errors import DataError
from ...io.files import IMAGE_SUFFIXES, open_regular
from .cloud import Store, is_url
from .folder_scan import LocalFolders, Pattern, Skip, file_stamp, has_suffix, scan

TAR_SUFFIXES = frozenset((".tar",))
LIST_SUFFIXES = frozenset((".txt",))
_MAX_LINE = 1 << 16
_MAGIC = frozenset("*?[")
_LOCAL = re.compile(r"^(file|local)://")
"""Of URLs that are paths: files behind them are opened as those are, which a pipe cannot block."""


class Found(NamedTuple):
    """An image that was found; the fields are those of `ImageRef`."""

    name: str
    source: str
    span: tuple[int, int] | None = None
    stamp: tuple[int, int] | None = None


@dataclass(frozen=True)
class Sources:
    """What the images of a job are found in; see `find`."""

    names: tuple[str, ...]
    follow_links: bool = False

    def images(self, out: Path | None, skip: Skip = lambda path, reason: None) -> Iterator["Found"]:
        """`find`, but for the folder of labels."""
        return find(self.names, leave_out=out, follow_links=self.follow_links, skip=skip)


def find(
    sources: Sequence[str | Path],
    *,
    leave_out: Path | None,
    follow_links: bool = False,
    skip: Skip = lambda path, reason: None,
) -> Iterator[Found]:
    """Images of all sources in a fixed order; one folder at a time is in memory.

    A source is a folder (searched with all below it), a file, a tar file, a `.txt` file that lists
    one path a line (or NUL-separated; relative ones start at its folder), a glob
    (`photos/**/*.jpg`, `shards/*.tar`), or the URL of a folder, file, tar file or glob. Folders are
    searched depth first, names in byte order. What is hidden, and what is no image, is passed by;
    what has one and is no regular file is found all the same, and fails when it is read.

    Args:
        leave_out: a folder that is not searched: the labels in it are images as well.
        follow_links: enter folders behind links; links to files are always followed.
        skip: told of links to folders that were not followed, and of what was left out though it is
            called like an image.

    Raises:
        DataError: a source does not exist, a folder or tar cannot be read, or nothing was found.
    """
    out = None if leave_out is None else os.fspath(leave_out)
    search = _Search(out, follow_links, skip)
    streams = [search.images(os.fspath(source)) for source in sources]
    found = False
    for stream in streams:
        for image in stream:
            found = True
            yield image
    if not found:
        given = ", ".join(repr(os.fspath(source)) for source in sources) or "no sources"
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(
            f"no images in {given}: looked for {suffixes}; tar files are given by name or glob"
        )


class _Search:
    def __init__(self, leave_out: str | None, follow_links: bool, skip: Skip) -> None:
        self._skip = skip
        self._folders = partial(
            LocalFolders, leave_out=leave_out, follow_links=follow_links, skip=skip
        )

    def images(self, source: str) -> Iterator[Found]:
        """Says at once whether a source is there; its images follow as they are asked for."""
        source = _LOCAL.sub("", source)
        if is_url(source):
            return self._at_url(source)
        if not source or "\0" in source:
            raise DataError(f"a source is named {source!r}: give a path, a glob or a URL")
        if os.path.isdir(source):
            return self._below(_absolute(source))
        if os.path.exists(source):
            path = _absolute(source)
            if _is_list(path):
                return self._listed(path)
            return self._file(os.path.basename(path), path)
        if _MAGIC & set(source):
            return self._matching(source)
        raise DataError(f"no such image or folder: {source!r}: check the path")

    def _below(self, root: str) -> Iterator[Found]:
        for match in scan(self._folders(IMAGE_SUFFIXES), root):
            yield Found(match.name, match.path, None, match.stamp)

    def _file(self, name: str, path: str) -> Iterator[Found]:
        stamp = file_stamp(path)
        if not _is_tar(path):
            yield Found(name, path, None, stamp)
            return
        with open_regular(path) as file:
            for member in image_members(file, path, self._skip):
                yield Found(member.name, path, member.span, stamp)

    def _matching(self, pattern: str) -> Iterator[Found]:
        base, parts = _split_glob(pattern)
        root = _absolute(base or os.curdir)
        if not os.path.isdir(root):
            raise DataError(
                f"no such image or folder: {pattern!r}, there is no {root!r}: check the path"
            )
        return self._matches(root, parts)

    def _matches(self, root: str, parts: tuple[str, ...]) -> Iterator[Found]:
        folders = self._folders(IMAGE_SUFFIXES | TAR_SUFFIXES)
        for match in scan(folders, root, Pattern(parts)):
            if _is_tar(match.path):
                yield from self._file(match.name, match.path)
            else:
                yield Found(match.name, match.path, None, match.stamp)

    def _listed(self, path: str) -> Iterator[Found]:
        folder = os.path.dirname(path)
        seen = 0
        missing: str | None = None
        for line in _lines(path):
            for image in self._entry(line, folder):
                if image.stamp is not None or is_url(image.source):
                    seen += 1
                elif missing is None:
                    missing = image.source
                yield image
        if missing is not None and not seen:
            raise DataError(
                f"no file that list {path!r} names is there, the first is {missing!r}: relative "
                "paths start at the list's own folder"
            )

    def _entry(self, line: str, folder: str) -> Iterator[Found]:
        line = _LOCAL.sub("", line)
        if is_url(line):
            store = Store(line)
            return self._stored(store, _last(store.path))
        path = os.path.join(folder, line)
        inside = os.path.join(folder, "")
        # Files elsewhere are named by their whole path.
        name = os.path.normpath(path).removeprefix(inside).lstrip(os.sep)
        return self._file(name.replace(os.sep, "/"), path)

    def _at_url(self, url: str) -> Iterator[Found]:
        store = Store(url)
        if "*" in store.path or (not store.is_web and _MAGIC & set(store.path)):
            base, parts = _split_glob(store.path)
            return self._stored_matches(store.at(base), Pattern(parts))
        is_folder = store.is_folder()
        if is_folder is None:
            raise DataError(f"no such image or folder: {url!r}: check the URL")
        if is_folder:
            return self._stored_matches(store, Pattern())
        return self._stored(store, _last(store.path))

    def _stored_matches(self, store: Store, pattern: Pattern) -> Iterator[Found]:
        everything = pattern.accepts(pattern.start)
        suffixes = IMAGE_SUFFIXES if everything else IMAGE_SUFFIXES | TAR_SUFFIXES
        for match in scan(store.folders(suffixes), store.path, pattern):
            if _is_tar(match.path):
                yield from self._stored(store.at(match.path), match.name)
            else:
                yield Found(match.name, store.url(match.path), None, match.stamp)

    def _stored(self, store: Store, name: str) -> Iterator[Found]:
        url = store.url(store.path)
        if not _is_tar(store.path):
            yield Found(name, url, None, store.stamp())
            return
        stamp = store.stamp()
        with store.open() as file:
            for member in image_members(file, url, self._skip):
                yield Found(member.name, url, member.span, stamp)


def _is_tar(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in TAR_SUFFIXES


def _is_list(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in LIST_SUFFIXES


def _absolute(path: str) -> str:
    # `link/..` is not where the link lies, so only the file system can resolve it.
    resolve = os.path.realpath if os.pardir in path.split(os.sep) else os.path.abspath
    return resolve(path)


def _last(path: str) -> str:
    return path.partition("?")[0].rstrip("/").rpartition("/")[2]


def _split_glob(pattern: str) -> tuple[str, tuple[str, ...]]:
    """The folder before the first part with a wild card, and the parts from there."""
    parts = pattern.split("/")
    first = next(place for place, part in enumerate(parts) if _MAGIC & set(part))
    base = "/".join(parts[:first])
    if first and not base:
        base = "/"
    return base, tuple(part for part in parts[first:] if part)


def _lines(path: str) -> Iterator[str]:
    """Entries of a list file, without empty ones."""
    with open_regular(path) as file:
        by_nul = b"\0" in file.peek(_MAX_LINE)
        if file.peek(3).startswith(b"\xef\xbb\xbf"):  # a mark that Windows editors begin with
            file.read(3)
        mark = b"\0" if by_nul else b"\n"
        rest = b""
        while block := file.read(1 << 20):
            *whole, rest = (rest + block).split(mark)
            for line in [*whole, rest]:
                if len(line) > _MAX_LINE:
                    raise DataError(
                        f"{path!r} has a line of {len(line)} bytes: list one path a line"
                    )
            yield from _paths(whole, by_nul)
        yield from _paths([rest], by_nul)


def _paths(lines: list[bytes], by_nul: bool) -> Iterator[str]:
    for line in lines:
        text = line if by_nul else line.removesuffix(b"\r")
        if text.strip():
            yield os.fsdecode(text)


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
