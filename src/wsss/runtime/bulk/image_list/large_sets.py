"""Collections for ten million images: a list on the disk, and sets of names as hashes.

A hash takes 8 bytes a name, where Python's own sets take a hundred.
"""

import marshal
import tempfile
import unicodedata
import zlib
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ...io.files import write_error
from ..inputs.sources import Found

_CHUNK = 4096


class DiskList:
    """Images on the disk, in chunks that are compressed.

    Args:
        folder: an existing one; the file in it has no name and goes when it is closed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        except OSError as error:
            raise write_error(folder, error) from error
        self._offsets: list[int] = []
        self._open: list[tuple[object, ...]] = []

    def close(self) -> None:
        """Removes the file."""
        self._file.close()

    def append(self, image: Found) -> None:
        """One more image.

        Raises:
            ArtifactError: the disk is full, or fails.
        """
        self._open.append(tuple(image))
        if len(self._open) == _CHUNK:
            self.finish()

    def finish(self) -> None:
        """After the last image, before they are read.

        Raises:
            ArtifactError: see `append`.
        """
        if self._open:
            self._offsets.append(self._file.tell())
            try:
                self._file.write(zlib.compress(marshal.dumps(self._open), 1))
                self._file.flush()
            except OSError as error:
                raise write_error(self._folder, error) from error
            self._open = []

    def __iter__(self) -> Iterator[Found]:
        for number in range(len(self._offsets)):
            yield from self._chunk(number)

    def at(self, places: NDArray[np.int64]) -> Iterator[Found]:
        """Images at ascending places."""
        numbers = places // _CHUNK
        for number in np.unique(numbers).tolist():
            chunk = list(self._chunk(number))
            for place in (places[numbers == number] % _CHUNK).tolist():
                yield chunk[place]

    def _chunk(self, number: int) -> Iterator[Found]:
        start = self._offsets[number]
        end = self._offsets[number + 1] if number + 1 < len(self._offsets) else None
        self._file.seek(start)
        data = self._file.read() if end is None else self._file.read(end - start)
        return map(Found._make, marshal.loads(zlib.decompress(data)))


Hashes = NDArray[np.uint64]

_MIN_LOOSE = 1 << 20


def name_hash(name: str) -> int:
    """64 bits, the same on every machine."""
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def fold(name: str) -> str:
    """What is equal for names that some file system takes for one: case and accents apart."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def contains(members: Hashes, wanted: Hashes) -> NDArray[np.bool_]:
    """Which of `wanted` are in `members`, which is sorted."""
    if not len(members):
        return np.zeros(len(wanted), np.bool_)
    places = np.searchsorted(members, wanted).clip(max=len(members) - 1)
    return np.asarray(members[places] == wanted)


def repeated(ordered: Hashes) -> Hashes:
    """Those of a sorted array that come more than once, each once."""
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


class HashSet:
    """Grows by single hashes, in memory for about twice the different ones."""

    def __init__(self) -> None:
        self._sorted: Hashes = np.empty(0, np.uint64)
        self._loose = array("Q")
        self._last = -1

    def add(self, value: int) -> None:
        """One more; names of a folder often repeat the one before."""
        if value != self._last:
            self._last = value
            self._loose.append(value)
            if len(self._loose) >= max(_MIN_LOOSE, len(self._sorted)):
                self.sorted()

    def sorted(self) -> Hashes:
        """All of them, ascending, each once."""
        if self._loose:
            loose = np.frombuffer(self._loose, np.uint64)
            self._sorted = np.union1d(self._sorted, loose)
            del loose
            self._loose = array("Q")
        return self._sorted

    def __contains__(self, value: int) -> bool:
        found = contains(self.sorted(), np.array([value], np.uint64))
        return bool(found[0])
