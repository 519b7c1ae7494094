"""Images that were found, kept on the disk: ten million of them do not fit into memory."""

import marshal
import tempfile
import zlib
from collections.abc import Iterator
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
