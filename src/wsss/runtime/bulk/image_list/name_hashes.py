"""Sets of names by 64-bit hashes: 8 bytes a name, where Python's own sets take a hundred."""

import unicodedata
from array import array
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

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
