"""Files behind URLs, through fsspec: `s3://`, `gs://`, `http(s)://`, `memory://` and its others."""

import os
import re
from collections.abc import Iterator, Set
from typing import Any, BinaryIO, cast

from ....errors import DataError, MissingDependencyError, one_line
from ...io.files import BadFile
from .folder_scan import Entry, has_suffix

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(source: str) -> bool:
    """Whether it is a URL and not a path."""
    return _URL.match(source) is not None


class Store:
    """The file system behind a URL.

    Attributes:
        path: what the URL names in it.

    Raises:
        MissingDependencyError: fsspec, or its package for this kind of URL, is not installed.
        DataError: no such kind of URL.
    """

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise MissingDependencyError(
                f"fsspec is not installed, needed for {url!r}: pip install 'wsss[cloud]'"
            ) from error
        try:
            # Without its cache, which would keep every folder's listing.
            self._files, self.path = url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise MissingDependencyError(f"{url!r} needs a package: {one_line(error)}") from error
        except Exception as error:
            raise DataError(f"cannot open {url!r}: {one_line(error)}") from error

    @property
    def is_web(self) -> bool:
        """Whether `?` is a part of names."""
        return _protocol(self._files) in ("http", "https")

    def is_folder(self) -> bool | None:
        """None: nothing is there.

        Raises:
            DataError: the server does not tell.
        """
        if self.is_web and self.path.endswith("/"):
            return True  # whose list of files is a file as well
        try:
            return str(self._files.info(self.path)["type"]) == "directory"
        except Exception as error:
            fault = _read_error(self.url(self.path), error)
            if fault.code == "missing":
                return None
            raise fault from error

    def url(self, path: str) -> str:
        """The URL of a path in it."""
        return str(self._files.unstrip_protocol(path))

    def at(self, path: str) -> "Store":
        """The same file system at another path."""
        other = object.__new__(Store)
        other._files, other.path = self._files, path
        return other

    def stamp(self) -> tuple[int, int] | None:
        """Size, and 0 for the time of change, which few stores keep; None where unknown."""
        try:
            return _stamp(self._files.info(self.path))
        except Exception:  # reading it will tell why
            return None

    def open(self) -> BinaryIO:
        """The file, to seek and read.

        Raises:
            BadFile: absent, a folder, or the server refuses.
        """
        try:
            return cast(BinaryIO, self._files.open(self.path, "rb"))
        except Exception as error:
            raise _read_error(self.url(self.path), error) from error

    def read(self, span: tuple[int, int] | None, max_bytes: int) -> tuple[bytes, int | None]:
        """At most `max_bytes + 1` bytes of the file, or those of a span; and the file's size.

        Raises:
            BadFile: absent, a folder, or the server refuses.
        """
        try:
            # A cache would fetch far more than a span.
            with self._files.open(self.path, "rb", cache_type="none") as file:
                if span is not None:
                    file.seek(span[0])
                wanted = max_bytes + 1 if span is None else min(span[1], max_bytes + 1)
                data = bytes(file.read(wanted))
                size = getattr(file, "size", None)
                return data, int(size) if size is not None else None
        except Exception as error:
            raise _read_error(self.url(self.path), error) from error

    def folders(self, suffixes: Set[str]) -> "StoreFolders":
        """Lists its folders for `scan`."""
        return StoreFolders(self._files, suffixes)


class StoreFolders:
    """Lists folders of a store for `scan`; a folder's listing is in memory as a whole."""

    def __init__(self, files: Any, suffixes: Set[str]) -> None:
        self._files = files
        self._suffixes = suffixes

    def __call__(self, folder: str) -> Iterator[Entry]:
        """Entries of a folder.

        Raises:
            DataError: it cannot be read.
        """
        try:
            details = self._files.ls(folder, detail=True)
        except Exception as error:
            url = self._files.unstrip_protocol(folder)
            raise DataError(f"cannot read folder {url!r}: {one_line(error)}") from error
        here = folder.rstrip("/")
        entries = []
        for detail in details:
            path = str(detail["name"]).rstrip("/")
            name = path.rpartition("/")[2]
            # Stores list a folder's own mark, and web pages link to everywhere.
            if path == here or path.rpartition("/")[0].lstrip("/") != here.lstrip("/"):
                continue
            if detail["type"] == "directory":
                entries.append(Entry(name, path, True))
            elif not name.startswith(".") and has_suffix(name, self._suffixes):
                entries.append(Entry(name, path, False, _stamp(detail)))
        entries.sort(key=lambda entry: (os.fsencode(entry.name), entry.is_folder))
        return iter(entries)


def _stamp(detail: dict[str, Any]) -> tuple[int, int] | None:
    size = detail.get("size")
    return None if size is None else (int(size), 0)


def _protocol(files: Any) -> str:
    protocol = files.protocol
    return str(protocol if isinstance(protocol, str) else protocol[0])


def _read_error(url: str, error: Exception) -> BadFile:
    code = "unreadable"
    if isinstance(error, FileNotFoundError) and not _is_failure(error.__cause__):
        code = "missing"
    elif isinstance(error, IsADirectoryError):
        code = "not-a-file"
    return BadFile(code, f"cannot read {url!r}: {one_line(error)}")


def _is_failure(cause: BaseException | None) -> bool:
    """Whether a file only counts as absent because its server did not answer properly."""
    no_answer = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    return no_answer or getattr(cause, "status", 404) not in (404, 410)
