"""Which images of a unit are under way, in a file that outlives the death of their process.

It tells which images may have caused that.
"""

import mmap
from pathlib import Path
from types import TracebackType

from ...io.files import make_folder, write_error
from ...io.staging import WORK

_BEGUN, _ENDED = 1, 2


class InProgress:
    """One byte for each image of a unit; a store into shared memory, which costs nothing."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path, self._content = path, content

    @classmethod
    def create(cls, out: Path, unit: str, count: int) -> "InProgress":
        """Of a unit that begins.

        Raises:
            ArtifactError: the file cannot be written.
        """
        path = _path(out, unit)
        try:
            make_folder(path.parent)
            path.write_bytes(bytes(count))
            with open(path, "r+b") as file:
                return cls(path, mmap.mmap(file.fileno(), count))
        except OSError as error:
            raise write_error(path, error) from error

    def begin(self, place: int) -> None:
        """An image is under way."""
        self._content[place] = _BEGUN

    def end(self, place: int) -> None:
        """It is not any more, whatever became of it."""
        self._content[place] = _ENDED

    def __enter__(self) -> "InProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._content.close()
        self._path.unlink(missing_ok=True)


def under_way(out: Path, unit: str) -> frozenset[int]:
    """Places of the images that a unit had begun and not ended; none without a file."""
    return frozenset(place for place, mark in enumerate(_read(out, unit)) if mark == _BEGUN)


def num_ended(out: Path, unit: str) -> int:
    """Images of a unit that are through."""
    return _read(out, unit).count(_ENDED)


def clear(out: Path, unit: str) -> None:
    """Forget what was under way in a unit."""
    _path(out, unit).unlink(missing_ok=True)


def _read(out: Path, unit: str) -> bytes:
    try:
        return _path(out, unit).read_bytes()
    except OSError:  # it has not begun, or is over
        return b""


def _path(out: Path, unit: str) -> Path:
    return out / WORK / f"{unit}.marks"
