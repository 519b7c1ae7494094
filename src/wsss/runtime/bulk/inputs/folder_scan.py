"""Trees of files in a fixed order, one folder in memory at a time; and glob patterns over them."""

import os
import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from fnmatch import translate
from itertools import islice
from typing import NamedTuple

import numpy as np

from ....errors import DataError
from ...io.files import IMAGE_SUFFIXES

CHUNK = 1 << 16
"""Names that are Python objects at a time; a folder's others are one array of bytes."""

Skip = Callable[[str, str], None]
"""Told of what was left out and would be missed: (path, reason)."""


class LeftOut:
    """Keeps the first of what was left out, and counts the others; see `Skip`."""

    def __init__(self) -> None:
        self._first, self._count = "", 0

    def __call__(self, path: str, reason: str) -> None:
        self._first = self._first or f"{path!r} ({reason})"
        self._count += 1

    def __str__(self) -> str:
        more = f" and {self._count - 1} more" if self._count > 1 else ""
        return f"left out: {self._first}{more}" if self._count else ""


class Entry(NamedTuple):
    """A file or folder inside of a folder; stamp: size and time of change in ns, where known."""

    name: str
    path: str
    is_folder: bool
    stamp: tuple[int, int] | None = None


class Match(NamedTuple):
    """A file that was found; name: relative to where the scan began, parts separated by `/`."""

    name: str
    path: str
    stamp: tuple[int, int] | None


ListFolder = Callable[[str], Iterator[Entry]]
"""Entries of a folder by its path, in byte order of their names."""


class Pattern:
    """A glob, compared with names one folder level at a time; no parts: everything matches.

    `*`, `?` and `[...]` stay within a level, `**` is any number of levels; a name that begins with
    a dot is matched only by a part that does. What lies below a folder that matches, matches, but
    for what is hidden.
    """

    def __init__(self, parts: tuple[str, ...] = ()) -> None:
        self._parts = parts
        self._expressions = [re.compile(translate(part)) for part in parts]
        self.start = self._skipping({0})

    def step(self, places: Set[int], name: str) -> Set[int]:
        """Places in the pattern after one more level; none: nothing below can match."""
        if self.accepts(places):
            return places if not name.startswith(".") else frozenset()
        after = set()
        for place in places:
            part = self._parts[place]
            if name.startswith(".") and not part.startswith("."):
                continue
            if part == "**":
                after.add(place)
            elif self._expressions[place].match(name):
                after.add(place + 1)
        return self._skipping(after)

    def accepts(self, places: Set[int]) -> bool:
        """Whether a name that led to these places matches."""
        return len(self._parts) in places

    def _skipping(self, places: set[int]) -> Set[int]:
        for place in sorted(places):
            while place < len(self._parts) and self._parts[place] == "**":
                place += 1
                places.add(place)
        return frozenset(places)


EVERYTHING = Pattern()


@dataclass
class _Level:
    entries: Iterator[Entry]
    prefix: str
    places: Set[int]
    path: str
    found_before: int


def scan(list_folder: ListFolder, root: str, pattern: Pattern = EVERYTHING) -> Iterator[Match]:
    """Files below a folder, depth first, each folder in its place among the names.

    A folder that is named like an image and holds none is a match as well: somebody will miss it.
    """
    found = 0
    stack = [_Level(list_folder(root), "", pattern.start, root, 0)]
    while stack:
        level = stack[-1]
        entry = next(level.entries, None)
        if entry is None:
            stack.pop()
            named_like_image = stack and has_suffix(level.path, IMAGE_SUFFIXES)
            if named_like_image and found == level.found_before and pattern.accepts(level.places):
                found += 1
                yield Match(level.prefix[:-1], level.path, None)
            continue
        places = pattern.step(level.places, entry.name)
        name = level.prefix + entry.name
        if entry.is_folder and places:
            below = list_folder(entry.path)
            stack.append(_Level(below, f"{name}/", places, entry.path, found))
        elif not entry.is_folder and pattern.accepts(places):
            found += 1
            yield Match(name, entry.path, entry.stamp)


def has_suffix(path: str, suffixes: Set[str]) -> bool:
    """Whether the extension, in lower case, is one of these."""
    return os.path.splitext(path)[1].lower() in suffixes


class LocalFolders:
    """Lists folders of this machine for `scan`.

    Links to files are followed. Links to folders are only followed on demand, and then each folder
    is entered once, under the name that comes first: a loop ends, nothing comes twice. Those that
    are not followed are told.

    Args:
        suffixes: extensions of files that are listed, in lower case.
        leave_out: a folder that is not entered.
    """

    def __init__(
        self, suffixes: Set[str], *, leave_out: str | None, follow_links: bool, skip: Skip
    ) -> None:
        self._suffixes = suffixes
        self._left_out = _identity(leave_out) if leave_out is not None else None
        self._follow = follow_links
        self._entered: set[tuple[int, int]] = set()
        self._skip = skip

    def __call__(self, folder: str) -> Iterator[Entry]:
        """Entries of a folder.

        Raises:
            DataError: it cannot be read.
        """
        self._enter(folder)  # where the scan begins
        for raw in self._sorted_names(folder):
            name, kind = os.fsdecode(raw[:-2]), raw[-1:]
            path = os.path.join(folder, name)
            if kind == b"f":
                yield Entry(name, path, False, file_stamp(path))
            elif self._left_out is not None and _identity(path) == self._left_out:
                continue
            elif self._enter(path):
                yield Entry(name, path, True)
            else:
                self._skip(path, "a folder that is searched under another name")

    def _enter(self, folder: str) -> bool:
        """Whether it is for the first time, as far as links make that a question."""
        identity = _identity(folder) if self._follow else None
        if identity is None:
            return True
        is_new = identity not in self._entered
        self._entered.add(identity)
        return is_new

    def _sorted_names(self, folder: str) -> Iterator[bytes]:
        """Names with a NUL and what they are: `d` or `f`. A NUL sorts before all that a longer
        name can go on with, and keeps numpy from shortening."""
        try:
            with os.scandir(folder) as listing:
                marked = (name for entry in listing if (name := self._marked(entry)) is not None)
                chunks = []
                while chunk := list(islice(marked, CHUNK)):
                    chunks.append(np.array(chunk, np.bytes_))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"cannot read folder {folder!r}: {reason}") from error
        if not chunks:
            return
        names = np.concatenate(chunks)
        del chunks
        names.sort()
        for start in range(0, len(names), CHUNK):
            yield from names[start : start + CHUNK].tolist()

    def _marked(self, entry: os.DirEntry[str]) -> bytes | None:
        if self._is_folder(entry):
            if not entry.is_symlink() or self._follow:
                return os.fsencode(entry.name) + b"\0d"
            if not entry.name.startswith("."):
                self._skip(entry.path, "a link to a folder")
        # `._a.jpg` is what a Mac leaves beside a.jpg.
        elif not entry.name.startswith(".") and has_suffix(entry.name, self._suffixes):
            return os.fsencode(entry.name) + b"\0f"
        return None

    @staticmethod
    def _is_folder(entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:  # a link that leads nowhere or in a circle
            return False


def file_stamp(path: str) -> tuple[int, int] | None:
    """Size and time of change in ns; None of what is not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
