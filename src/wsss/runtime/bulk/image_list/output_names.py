"""Names of outputs from names of images: short where that is safe, never two alike.

An output's name is a base to which writers add suffixes of their own, `.png` or
`.confidence.png`. So a base must differ from all others, and neither from another base nor from a
folder may it be told apart only by what follows a dot: `x` + `.png` would be the folder `x.png`.
Names are compared as file systems do that know neither case nor forms of accents.
"""

import hashlib
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ....errors import DataError
from ...io.image_labels import strip_image_suffix
from ..inputs.sources import Found
from .large_sets import DiskList, Hashes, HashSet, contains, fold, name_hash, repeated

MAX_BYTES = 255
"""Of a part of a path, on all usual file systems."""
SUFFIX_BYTES = 16
"""Room for what a writer adds."""

_BASE_BYTES = MAX_BYTES - SUFFIX_BYTES
_HASH_DIGITS = 8
# A backslash and a drive's letter lead elsewhere on Windows.
_UNSAFE = re.compile(r"[\0\\]|^[A-Za-z]:|^\.{0,2}\Z")

_STEM, _FULL, _HASHED = range(3)


class Named(NamedTuple):
    """An image and the name of its outputs, without suffix."""

    image: Found
    output: str


class _Parts(NamedTuple):
    """folder: with `/` at its end, or empty; is_plain: nothing had to be replaced or cut."""

    folder: str
    full: str
    is_plain: bool

    @property
    def stem(self) -> str:
        return strip_image_suffix(self.full)


class NamedImages:
    """Images of a job with their outputs' names, kept in a file without a name.

    `len()` tells their number; they can be gone through more than once. A context manager, which
    closes the file.
    """

    def __init__(
        self, found: Iterable[Found], scratch: Path, *, beside: Iterable[str] = ()
    ) -> None:
        """Reads all images, and gives each an output.

        Args:
            scratch: an existing folder with room for a compressed list.
            beside: outputs that exist and stay; of a job to which images are appended.

        Raises:
            DataError: two images would have the same output, because they have the same name.
        """
        self._found = DiskList(scratch)
        try:
            survey = _Survey(beside)
            for image in found:
                survey.add(image)
                self._found.append(image)
            self._found.finish()
            self._forms = survey.forms(self._found)
        except BaseException:
            self._found.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._found.close()

    def __len__(self) -> int:
        return len(self._forms)

    def __iter__(self) -> Iterator[Named]:
        for image, form in zip(self._found, self._forms.tolist(), strict=True):
            yield Named(image, _output(image.name, form))

    def images(self) -> Iterator[Found]:
        """The images alone."""
        return iter(self._found)


class _Survey:
    """What is known of all names, in hashes; the result depends on the names, not their order."""

    def __init__(self, beside: Iterable[str]) -> None:
        self._stems = array("Q")
        self._doubtful = array("B")  # 1: cannot be used as they are; 2: would extend an old one
        self._taken = HashSet()  # folders, and what comes before a dot in folders and stems
        self._old = HashSet()
        self._folder = ""
        for output in beside:
            base = fold(output)
            self._old.add(name_hash(base))
            self._add_folders(base.rpartition("/")[0])
            self._add_prefixes(base)
        self._has_old = bool(len(self._old.sorted()))

    def add(self, image: Found) -> None:
        parts = _parts(image.name)
        folder, stem = fold(parts.folder), parts.stem
        if folder != self._folder:
            self._check_folders(folder, image)
            self._add_folders(folder[:-1])
            self._folder = folder
        base = folder + fold(stem)
        self._add_prefixes(base)
        self._stems.append(name_hash(base))
        doubt = not parts.is_plain or _UNSAFE.search(stem) is not None
        extends_old = self._has_old and any(p in self._old for p in map(name_hash, _dotted(base)))
        self._doubtful.append(_HASHED if doubt else _FULL if extends_old else _STEM)

    def forms(self, found: DiskList) -> NDArray[np.uint8]:
        """Of each image, in order: stem, full name or hashed name."""
        stems = np.frombuffer(self._stems, np.uint64)
        forms = np.frombuffer(self._doubtful, np.uint8).copy()
        ordered = np.sort(stems)
        taken = np.union1d(self._taken.sorted(), self._old.sorted())
        twice = repeated(ordered)
        for start in range(0, len(stems), 1 << 20):
            part = slice(start, start + (1 << 20))
            clash = contains(twice, stems[part]) | contains(taken, stems[part])
            forms[part][clash & (forms[part] == _STEM)] = _FULL
        if forms.any():
            self._lengthen(forms, found, (ordered, taken))
        return forms

    def _lengthen(
        self, forms: NDArray[np.uint8], found: DiskList, taken: tuple[Hashes, ...]
    ) -> None:
        """Takes the full name where that is unique, and the hashed one elsewhere."""
        longer = np.flatnonzero(forms)
        full, hashed = array("Q"), array("Q")
        for image in found.at(longer):
            full.append(name_hash(fold(_output(image.name, _FULL))))
            hashed.append(name_hash(fold(_output(image.name, _HASHED))))
        full_names = np.frombuffer(full, np.uint64)
        twice = repeated(np.sort(full_names))
        clash = _in_any((twice, *taken), full_names)
        forms[longer[clash]] = _HASHED
        last = np.frombuffer(hashed, np.uint64)[forms[longer] == _HASHED]
        others = (np.sort(full_names[forms[longer] == _FULL]), *taken)
        ordered = np.sort(last)
        same = np.union1d(repeated(ordered), ordered[_in_any(others, ordered)])
        if len(same):
            self._refuse(found, forms, int(same[0]))

    def _refuse(self, found: DiskList, forms: NDArray[np.uint8], output: int) -> None:
        users = (
            image
            for image, form in zip(found, forms.tolist(), strict=True)
            if form == _HASHED and name_hash(fold(_output(image.name, form))) == output
        )
        first, *others = islice(users, 2)
        if others and first == others[0]:
            raise DataError(f"{first.source!r} is given twice: give each image once")
        second = others[0].source if others else "an output that exists"
        raise DataError(
            f"{first.source!r} and {second!r} would both be written as "
            f"{_output(first.name, _STEM)!r}: label them apart, with an `out` for each, or give "
            "the folder above them"
        )

    def _add_folders(self, folder: str) -> None:
        for name in _with_parents(folder):
            self._taken.add(name_hash(name))
            self._add_prefixes(name)

    def _add_prefixes(self, name: str) -> None:
        for prefix in _dotted(name):
            self._taken.add(name_hash(prefix))

    def _check_folders(self, folder: str, image: Found) -> None:
        if not self._has_old:
            return
        for name in _with_parents(folder[:-1]):
            if any(name_hash(part) in self._old for part in (name, *_dotted(name))):
                raise DataError(
                    f"the outputs of {image.source!r} need the folder {name!r}, whose name could "
                    "be that of an output that exists: label them apart, with an `out` for each"
                )


def _in_any(sets: tuple[Hashes, ...], wanted: Hashes) -> NDArray[np.bool_]:
    return np.asarray(np.any([contains(members, wanted) for members in sets], axis=0))


def _with_parents(folder: str) -> Iterator[str]:
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]


def _dotted(name: str) -> Iterator[str]:
    """What comes before each dot of the last part."""
    place = name.find(".", name.rfind("/") + 1)
    while place >= 0:
        yield name[:place]
        place = name.find(".", place + 1)


def _parts(name: str) -> _Parts:
    folder, slash, last = name.rpartition("/")
    safe_folder = _safe_folder(folder + slash)
    full = _safe(last)
    return _Parts(safe_folder, full, safe_folder + full == name)


@lru_cache(64)  # the next image's is mostly the same
def _safe_folder(folder: str) -> str:
    return "".join(f"{_safe(part)}/" for part in folder.split("/")[:-1])


def _safe(part: str) -> str:
    """A part of a path that stays where it is put; different ones may become equal."""
    if _UNSAFE.search(part):
        part = re.sub(r"[\0\\:]", "_", part) if part.strip(".") else "_" * max(len(part), 1)
    return _cut(part, _BASE_BYTES)


def _cut(part: str, num_bytes: int) -> str:
    if 4 * len(part) <= num_bytes:  # no character takes more in UTF-8
        return part
    raw = os.fsencode(part)
    if len(raw) <= num_bytes:
        return part
    end = num_bytes
    while end > num_bytes - 3 and raw[end] & 0xC0 == 0x80:  # not inside of a character
        end -= 1
    return os.fsdecode(raw[:end])


def _output(name: str, form: int) -> str:
    parts = _parts(name)
    if form == _STEM:
        return parts.folder + parts.stem
    if form == _FULL:
        return parts.folder + parts.full
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    kept = _cut(parts.full, _BASE_BYTES - 1 - _HASH_DIGITS)
    return f"{parts.folder}{kept}.{digest[:_HASH_DIGITS]}"
