"""The frozen list of a job's images, cut into units; one part is one unit, and is read alone.

`inputs/00042.jsonl.gz` holds unit 42, an image a line. `inputs/index.DIGEST.json` holds the number
of images, the size and the SHA-256 of every part as it is before compression, so that a list is the
same on every machine; DIGEST is the SHA-256 of the index and identifies the list. The index comes
last: a freeze that was killed leaves none, and one that appends leaves the old one valid.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ....errors import ArtifactError, DataError
from ...io.files import atomic_write_bytes, make_folder, read_file, write_error
from ...io.staging import sync_all
from ..inputs.images import ImageRef
from ..inputs.sources import Found
from .large_sets import name_hash

FORMAT_VERSION = 1
_SMALLEST_UNIT, _LARGEST_UNIT, _FEW_UNITS = 8, 1024, 64
_MAX_INDEX_BYTES = 1 << 28
_MAX_UNIT_SIZE = 1 << 20
_MAX_LINE_BYTES = 1 << 17
_COMPRESSION = 1
_MAX_CLASSES = 254
_ENCODER = json.JSONEncoder(separators=(",", ":"))  # surrogates as escapes: the names of all files

_Image = TypeVar("_Image", Found, ImageRef)


def unit_size_for(count: int) -> int:
    """Images a unit for a job of `count`: enough units to share out, few enough to look at."""
    return min(max(-(-count // _FEW_UNITS), _SMALLEST_UNIT), _LARGEST_UNIT)


@dataclass(frozen=True)
class Part:
    """A unit's file: images, bytes before compression, and their SHA-256."""

    count: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class FrozenList:
    """The images of a job; from `freeze` or `open_list`.

    Attributes:
        digest: identifies the list.
        unit_size: images of a unit at most; the last one of each freeze may have fewer.
    """

    folder: Path
    digest: str
    unit_size: int
    parts: tuple[Part, ...]
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", tuple(accumulate(part.count for part in self.parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it is opened again: cheaper than to send it."""
        return open_list, (self.folder, self.digest)

    @property
    def num_units(self) -> int:
        """Units are numbered from 0."""
        return len(self.parts)

    def first(self, number: int) -> int:
        """Place in the whole list of a unit's first image."""
        return self._ends[number] - self.parts[number].count

    def unit(self, number: int) -> list[ImageRef]:
        """The images of a unit.

        Raises:
            ArtifactError: its part is absent, damaged or exchanged.
        """
        path = _part_path(self.folder, number)
        return _read_part(path, self.parts[number])

    def __iter__(self) -> Iterator[ImageRef]:
        for number in range(self.num_units):
            yield from self.unit(number)

    @cached_property
    def _known(self) -> "_KnownNames":
        return _KnownNames(self)

    def unlisted(self, images: Iterable[_Image]) -> Iterator[_Image]:
        """Those images whose names the list does not have; 12 bytes an image of it in memory.

        Raises:
            ArtifactError: a part cannot be read.
        """
        return (image for image in images if image.name not in self._known)

    def append(self, refs: Iterable[ImageRef]) -> "FrozenList":
        """The list with those images behind that it does not have yet, by name.

        This list stays as it is, also on the disk. Outputs must have been chosen beside those of
        this list, for new images alone: `NamedImages(frozen.unlisted(found), ..., beside=...)`.

        Raises:
            ArtifactError: the folder cannot be written, or a part cannot be read.
        """
        new = self.unlisted(refs)
        added = tuple(_write_parts(new, self.folder, self.unit_size, self.num_units))
        if not added:
            return self
        return _commit(self.folder, self.unit_size, self.parts + added, self.num_units)


def freeze(refs: Iterable[ImageRef], folder: Path, unit_size: int) -> FrozenList:
    """Writes a list in the order given; one unit at a time is in memory.

    Args:
        folder: made where missing; a list that is there is replaced.
        unit_size: see `unit_size_for`.

    Raises:
        DataError: no images; and what `refs` raises.
        ArtifactError: the folder cannot be written.
    """
    if not 1 <= unit_size <= _MAX_UNIT_SIZE:
        raise ValueError(f"unit_size is {unit_size}")
    make_folder(folder)
    _remove_old(folder)
    parts = tuple(_write_parts(refs, folder, unit_size, 0))
    if not parts:
        raise DataError("no images to label: the list is empty")
    return _commit(folder, unit_size, parts, 0)


def open_list(folder: Path, digest: str) -> FrozenList:
    """A list that was frozen; its parts are read, and verified, as they are needed.

    Raises:
        ArtifactError: no such list, or damaged.
    """
    path = _index_path(folder, digest)
    try:
        data = read_file(path, max_bytes=_MAX_INDEX_BYTES)
    except DataError as error:
        raise ArtifactError(f"the list of images is gone: {error}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(path)
    try:
        index = json.loads(data)
        parts = tuple(_part(entry) for entry in index["parts"])
        unit_size = index["unit_size"]
        version = index["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path) from error
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"list of images {str(path)!r} has format {version!r}, expected {FORMAT_VERSION}: "
            "go on with the version of wsss that began this job"
        )
    fits = _is_count(unit_size, 1, _MAX_UNIT_SIZE) and all(p.count <= unit_size for p in parts)
    if not (parts and fits):
        raise _damaged(path)
    return FrozenList(folder, digest, unit_size, parts)


class _KnownNames:
    """Names of a list, by 64-bit hashes and then exactly."""

    _UNITS_KEPT = 4  # images are found in about the order in which they were

    def __init__(self, frozen: FrozenList) -> None:
        hashes = np.empty(len(frozen), np.uint64)
        units = np.empty(len(frozen), np.uint32)
        place = 0
        for number in range(frozen.num_units):
            for ref in frozen.unit(number):
                hashes[place] = name_hash(ref.name)
                units[place] = number
                place += 1
        order = np.argsort(hashes)
        self._hashes, self._units = hashes[order], units[order]

        @lru_cache(self._UNITS_KEPT)
        def names(number: int) -> frozenset[str]:
            return frozenset(ref.name for ref in frozen.unit(number))

        self._names = names

    def __contains__(self, name: str) -> bool:
        wanted = np.uint64(name_hash(name))
        start = int(np.searchsorted(self._hashes, wanted, "left"))
        end = int(np.searchsorted(self._hashes, wanted, "right"))
        return any(name in self._names(int(unit)) for unit in self._units[start:end])


def _write_parts(
    refs: Iterable[ImageRef], folder: Path, unit_size: int, number: int
) -> Iterator[Part]:
    rest = iter(refs)
    while unit := list(islice(rest, unit_size)):
        data = b"".join(_line(ref) for ref in unit)
        packed = gzip.compress(data, _COMPRESSION, mtime=0)
        atomic_write_bytes(_part_path(folder, number), packed, durable=False)
        yield Part(len(unit), len(data), hashlib.sha256(data).hexdigest())
        number += 1


def _commit(folder: Path, unit_size: int, parts: tuple[Part, ...], first_new: int) -> FrozenList:
    """Flushes the new parts, all at once, which is many times faster than one by one."""
    new = (_part_path(folder, number) for number in range(first_new, len(parts)))
    sync_all(folder, [*new, folder])
    index = {
        "format": FORMAT_VERSION,
        "unit_size": unit_size,
        "parts": [[part.count, part.num_bytes, part.sha256] for part in parts],
    }
    data = _ENCODER.encode(index).encode("ascii")
    digest = hashlib.sha256(data).hexdigest()
    atomic_write_bytes(_index_path(folder, digest), data)
    sync_all(folder, [folder])
    return FrozenList(folder, digest, unit_size, parts)


def _remove_old(folder: Path) -> None:
    """Indices first, so that no list is valid while its parts go."""
    try:
        for pattern in ("index.*.json", "*.jsonl.gz", ".*.tmp"):
            for path in folder.glob(pattern):
                path.unlink()
    except OSError as error:
        raise write_error(folder, error) from error


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.jsonl.gz"


def _index_path(folder: Path, digest: str) -> Path:
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ArtifactError(f"{digest!r} is no digest of a list of images: label into a new `out`")
    return folder / f"index.{digest}.json"


def _line(ref: ImageRef) -> bytes:
    fields = [ref.name, ref.source, ref.output, ref.span, ref.stamp, ref.labels]
    return _ENCODER.encode(fields).encode("ascii") + b"\n"


def _read_part(path: Path, part: Part) -> list[ImageRef]:
    try:
        packed = read_file(path, max_bytes=2 * part.num_bytes + 1024)
        unpack = zlib.decompressobj(wbits=31)
        data = unpack.decompress(packed, part.num_bytes + 1)
        whole = len(data) == part.num_bytes and unpack.eof and not unpack.unused_data
        if not whole or hashlib.sha256(data).hexdigest() != part.sha256:
            raise _damaged(path)
        refs = [_ref(row) for row in json.loads(b"[" + data.strip().replace(b"\n", b",") + b"]")]
    except (DataError, zlib.error, ValueError, TypeError, RecursionError) as error:
        raise _damaged(path) from error
    if len(refs) != part.count:
        raise _damaged(path)
    return refs


def _part(entry: Any) -> Part:
    count, num_bytes, sha256 = entry
    if not (
        _is_count(count, 1, _MAX_UNIT_SIZE)
        and _is_count(num_bytes, 1, count * _MAX_LINE_BYTES)
        and isinstance(sha256, str)
    ):
        raise ValueError("not the fields of a part")
    return Part(count, num_bytes, sha256)


def _ref(row: Any) -> ImageRef:
    """An image of a line; a list may come from a stranger.

    Raises:
        ValueError, TypeError: not the fields of an image, or an output that leaves its folder.
    """
    name, source, output, span, stamp, labels = row
    if not all(isinstance(text, str) and text for text in (name, source, output)):
        raise ValueError("names are no texts")
    if "\0" in output or "\\" in output or {"", ".", ".."} & set(output.split("/")):
        raise ValueError("an output leaves its folder")
    if span is not None and not (len(span) == 2 and all(map(_is_count, span))):
        raise ValueError("a span is no pair of counts")
    if stamp is not None:
        size, changed_at = stamp
        if not (_is_count(size) and _is_count(changed_at, least=-(1 << 63))):  # before 1970
            raise ValueError("a stamp is no size and time")
    if labels is not None:
        in_range = all(_is_count(label, 0, _MAX_CLASSES - 1) for label in labels)
        if not in_range or sorted(set(labels)) != labels:
            raise ValueError("labels are no ascending class indices")
    return ImageRef(name, source, output, _tuple(span), _tuple(stamp), _tuple(labels))


def _tuple(values: list[Any] | None) -> Any:
    return None if values is None else tuple(values)


def _is_count(value: object, least: int = 0, most: int = (1 << 63) - 1) -> bool:
    return type(value) is int and least <= value <= most


def _damaged(path: Path) -> ArtifactError:
    return ArtifactError(
        f"list of images {str(path)!r} is damaged or was exchanged: label into a new `out`"
    )
