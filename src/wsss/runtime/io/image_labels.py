"""Image-level labels from a CSV or JSON file: which classes an image shows, not where."""

import csv
import io
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import DataError
from .files import IMAGE_SUFFIXES, read_file

FILE_COLUMNS = ("file", "filename", "file_name", "image", "image_id", "id", "name")
LABEL_COLUMNS = ("labels", "classes", "label", "class")
_SINGULAR = ("label", "class")
BACKGROUND_NAMES = frozenset(("background", "_background", "_background_", "__background__"))
"""Names that stand for "no object class"; as a label they say nothing."""

_ABSENT = ("", "0", "0.0", "false", "no")
_PRESENT = ("1", "1.0", "true", "yes")
_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class LabelEntry:
    """What a label file says about one image; no labels: an image of background alone."""

    labels: tuple[str, ...]
    split: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class LabelTable:
    """A label file.

    `entries` has the image names as the file writes them, in its order.
    """

    path: Path
    entries: Mapping[str, LabelEntry]
    _by_stem: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_stem: dict[str, tuple[str, ...]] = {}
        for key in self.entries:
            stem = _stem(key)
            by_stem[stem] = (*by_stem.get(stem, ()), key)
        object.__setattr__(self, "_by_stem", by_stem)

    @property
    def class_names(self) -> tuple[str, ...]:
        """All names used as a label, sorted."""
        return tuple(sorted({name for entry in self.entries.values() for name in entry.labels}))

    def find_key(self, name: str) -> str | None:
        """The key in `entries` of an image, given with or without its extension.

        Raises:
            DataError: the file has several keys without exact match that differ in labels.
        """
        if name in self.entries:
            return name
        keys = self._by_stem.get(_stem(name), ())
        if len({self.entries[key] for key in keys}) > 1:
            raise DataError(
                f"label file {str(self.path)!r} has different rows for {name!r} "
                f"({', '.join(map(repr, keys))}): write the full file names"
            )
        return keys[0] if keys else None

    def find(self, name: str) -> LabelEntry | None:
        """The entry of an image, given with or without its extension; None where there is none."""
        key = self.find_key(name)
        return None if key is None else self.entries[key]


def read_label_table(
    path: str | os.PathLike[str], *, classes: Sequence[str] | None = None
) -> LabelTable:
    """Image-level labels of a file.

    Args:
        path: `.json`: `{"a.jpg": ["cat"]}`, `{"a.jpg": {"labels": [...], "split": ...}}` or
            `[{"file": "a.jpg", "labels": [...]}]`. Anything else is CSV with a header: a column
            `file` (or `image`, `id`, `name`) and either `labels` (or `classes`) with names
            separated by `;`, else `|`, else `,`, else spaces, the same in the whole file; or
            `label` (or `class`), where only `;` and `|` separate; or one column of 0 and 1 per
            class.
            `split` and `source` are optional in all.
        classes: known names; a cell that is one of them is not taken apart at its spaces.

    Returns:
        The table; an image without labels is legal and is one of background alone.

    Raises:
        DataError: not such a file, or two rows contradict each other about an image.
    """
    name = os.fspath(path)
    data = read_file(name, max_bytes=_MAX_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"label file {name!r} is not UTF-8 (byte {error.start}): save it as UTF-8"
        ) from error
    is_json = name.lower().endswith(".json")
    rows = _json_rows(text, name) if is_json else _csv_rows(text, name, classes or ())
    entries: dict[str, LabelEntry] = {}
    for file, entry in rows:
        if not file:
            raise DataError(f"label file {name!r} has an entry without an image name")
        if entries.setdefault(file, entry) != entry:
            raise DataError(
                f"label file {name!r} has two different entries for {file!r} "
                f"({_describe(entries[file])} and {_describe(entry)}): keep one"
            )
    if not entries:
        raise DataError(f"label file {name!r} lists no image, expected a row for each")
    return LabelTable(Path(name), entries)


def object_names(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels stripped, each once, in their order, without names of the background."""
    stripped = (label.strip() for label in labels)
    return tuple(dict.fromkeys(name for name in stripped if name and name not in BACKGROUND_NAMES))


def strip_image_suffix(name: str) -> str:
    """A file name without the extension, if that is one of an image (`v1.2` keeps its dot)."""
    stem, _, extension = name.rpartition(".")
    is_name = stem != "" and not stem.endswith("/")  # `.jpg` alone is a hidden file's name
    return stem if is_name and f".{extension.lower()}" in IMAGE_SUFFIXES else name


def _stem(name: str) -> str:
    """Form in which names are compared: macOS writes accents apart, Windows turns slashes."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return unicodedata.normalize("NFC", strip_image_suffix("/".join(parts)))


def _describe(entry: LabelEntry) -> str:
    shown = "; ".join(entry.labels) or "no label"
    return shown if entry.split is None else f"{shown} in {entry.split}"


def _csv_rows(text: str, path: str, classes: Sequence[str]) -> Iterator[tuple[str, LabelEntry]]:
    try:
        header, *rows = _parse_csv(text) or [[]]
    except csv.Error as error:
        raise DataError(f"label file {path!r} is not a CSV file: {error}: mend it there") from error
    names = [cell.strip().lower() for cell in header]
    file_column = _find_column(names, FILE_COLUMNS)
    if file_column is None:
        raise DataError(
            f"label file {path!r} has the columns {', '.join(header) or '(none)'}, expected one "
            "named file, image, id or name in the first line"
        )
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(
                f"label file {path!r}, row {line}, has {len(row)} cells, expected {len(header)}"
            )
    labels = _label_cells(rows, header, names, file_column, path, classes)
    split, source = (_find_column(names, (key,)) for key in ("split", "source"))
    for row, row_labels in zip(rows, labels, strict=True):
        yield (
            row[file_column].strip(),
            LabelEntry(object_names(row_labels), _optional(row, split), _optional(row, source)),
        )


def _parse_csv(text: str) -> list[list[str]]:
    first_line = text.lstrip().partition("\n")[0]
    # Spreadsheets in half of Europe separate columns by semicolons.
    delimiter = max(",;\t", key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    return [row for row in reader if row]


def _find_column(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _optional(row: Sequence[str], column: int | None) -> str | None:
    return (row[column].strip() or None) if column is not None else None


def _label_cells(
    rows: Sequence[Sequence[str]],
    header: Sequence[str],
    names: Sequence[str],
    file_column: int,
    path: str,
    classes: Sequence[str],
) -> list[list[str]]:
    label_column = _find_column(names, LABEL_COLUMNS)
    if label_column is not None:
        cells = [row[label_column].strip() for row in rows]
        return _split_cells(cells, classes, singular=names[label_column] in _SINGULAR)
    one_hot = [
        column
        for column, name in enumerate(names)
        if column != file_column and name not in ("split", "source")
    ]
    if not one_hot:
        raise DataError(
            f"label file {path!r} has the columns {', '.join(header)}, expected one named labels "
            "or classes, or a column of 0 and 1 per class"
        )
    return [
        [
            header[column].strip()
            for column in one_hot
            if _is_present(row[column], header[column], path)
        ]
        for row in rows
    ]


def _split_cells(
    cells: Sequence[str], classes: Sequence[str], *, singular: bool
) -> list[list[str]]:
    """One separator for the whole column, so that `traffic light;car` keeps its space and so does
    a lone `traffic light` further down."""
    marks = ";|" if singular else ";|,"
    separator = next((mark for mark in marks if any(mark in cell for cell in cells)), None)
    if separator is None and singular:
        return [[cell] for cell in cells]
    known = frozenset(classes)
    return [[cell] if cell in known else cell.split(separator) for cell in cells]


def _is_present(cell: str, column: str, path: str) -> bool:
    value = cell.strip().lower()
    if value in _PRESENT:
        return True
    if value in _ABSENT:
        return False
    raise DataError(
        f"label file {path!r} has {cell!r} in column {column!r}, expected 0 or 1 in a column per "
        "class, or a column named labels"
    )


def _json_rows(text: str, path: str) -> Iterator[tuple[str, LabelEntry]]:
    try:
        # Pairs instead of a dictionary, which would hide that an image is listed twice.
        document = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise DataError(f"label file {path!r} is not JSON: {error}: mend it there") from error
    if isinstance(document, _Pairs):
        for file, value in document:
            yield file, _json_entry(file, value, path)
    elif isinstance(document, list):
        for item in document:
            fields = dict(item) if isinstance(item, _Pairs) else {}
            name = next((fields[key] for key in FILE_COLUMNS if key in fields), None)
            if not isinstance(name, str | int):
                raise DataError(
                    f"label file {path!r} has an item without a name, expected objects like "
                    '{"file": "a.jpg", "labels": ["cat"]}'
                )
            yield str(name), _json_entry(str(name), item, path)
    else:
        raise DataError(
            f"label file {path!r} holds neither an object nor a list of objects, expected "
            '{"a.jpg": ["cat"]} or [{"file": "a.jpg", "labels": ["cat"]}]'
        )


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as the list of its members."""


def _json_entry(file: str, value: object, path: str) -> LabelEntry:
    fields = dict(value) if isinstance(value, _Pairs) else {"labels": value}
    labels = next((fields[key] for key in LABEL_COLUMNS if key in fields), None)
    if isinstance(labels, str):
        labels = labels.split(";")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise DataError(
            f"label file {path!r} has no list of class names for {file!r}, expected "
            '"labels": ["cat"], or [] for an image of background alone'
        )
    split, source = (_json_text(fields.get(key), file, path) for key in ("split", "source"))
    return LabelEntry(object_names(labels), split, source)


def _json_text(value: object, file: str, path: str) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    raise DataError(f"label file {path!r}: split and source of {file!r} must be strings")
