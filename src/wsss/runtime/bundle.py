"""Bundles: a folder with `bundle.json`, ONNX graphs and engines, read without trust.

The digests tell that a bundle is whole, not who made it. Graphs are therefore checked as a
stranger's; an engine (`*.plan`) cannot be: it is a program for the GPU, as good as its source.
"""

import hashlib
import io
import json
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from .backends.contract import TensorSpec
from .graph_check import DTYPES, MAX_ELEMENTS, MAX_GRAPH_BYTES, OPSETS, check_graph_bytes, quoted
from .image_labels import BACKGROUND_NAMES

MANIFEST = "bundle.json"
SCHEMA = 1
"""Counts up when an older program could not read a newer `bundle.json` any more."""
GRAPHS = ("cam", "affinity", "irnet", "refine", "label", "segmenter")
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_CLASSES = 254
"""A label map has 256 values; 0 is the background, 255 no statement."""
MAX_SIDE = 65_536

_REMEDY = "export the bundle again, or copy it again from where it came"


@dataclass(frozen=True)
class GraphEntry:
    """What the manifest says of a graph; `precision`: fp32, fp16 or int8."""

    file: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class EngineEntry:
    """A graph compiled by TensorRT; without the two flags for one version and one kind of GPU."""

    file: str
    graph: str
    tensorrt: str
    compute_capability: str
    gpu: str
    version_compatible: bool
    hardware_compatible: bool


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were all checked.

    Attributes:
        folder: where it was opened; may be read-only.
        version: of the wsss that wrote it.
        name: of the recipe.
        classes: without the background, whose label is 0.
        palette: RGB of the labels 0 to the number of classes.
        layout: nhwc or nchw: the order of the axes of an image.
        align: reference or corners: how score maps are resized.
        sizes: batch, height, width -> least, usual and greatest.
        settings, normalisation, parity: as the exporter of the method wrote them.
    """

    folder: Path
    version: str
    method: str
    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    layout: str
    precision: str
    opset: int
    align: str
    padding: str
    strides: dict[str, int]
    normalisation: dict[str, Any]
    settings: dict[str, Any]
    sizes: dict[str, tuple[int, int, int]]
    graphs: dict[str, GraphEntry]
    engines: tuple[EngineEntry, ...]
    parity: dict[str, Any]
    digest: str

    def graph_path(self, name: str) -> Path:
        """The ONNX file of a graph.

        Raises:
            ArtifactError: the bundle has no graph of this name.
        """
        if name not in self.graphs:
            raise ArtifactError(
                f"bundle {str(self.folder)!r} has no graph {quoted(name)}: it has "
                f"{', '.join(self.graphs)}"
            )
        return self.folder / self.graphs[name].file

    def engines_of(self, name: str) -> tuple[EngineEntry, ...]:
        """The engines of a graph, none if it was not compiled.

        Raises:
            ArtifactError: the bundle has no graph of this name.
        """
        self.graph_path(name)
        return tuple(engine for engine in self.engines if engine.graph == name)


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether a folder says that it is a bundle; nothing is checked."""
    return os.path.isfile(os.path.join(path, MANIFEST))


def open_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Read a bundle and check every file that it names; other files are not looked at.

    Args:
        folder: may be a symbolic link; the files in it may not, nor have a second hard link,
            through which somebody could change them or have them show another file.

    Raises:
        ArtifactError: no bundle, damaged, of a newer schema, or holding a file that is absent,
            changed, linked or hostile; the message names the file.
        MissingDependencyError: onnx is not installed.
    """
    root = Path(folder)
    path = root / MANIFEST
    if not os.path.lexists(path):
        raise ArtifactError(
            f"{str(root)!r} is no bundle, it has no {MANIFEST}: give a folder that `wsss export` "
            "wrote"
        )
    content = _read_manifest(path)
    try:
        bundle = _bundle(root, content)
        files = _files(content["files"], bundle)
    except _FaultError as fault:
        raise ArtifactError(f"{str(path)!r} {fault}: {_REMEDY}") from None
    graphs = {entry.file: entry for entry in bundle.graphs.values()}
    for file, (num_bytes, digest) in files.items():
        entry = graphs.get(file)
        data = _checked_content(root / file, num_bytes, digest, keep=entry is not None)
        if entry:
            # The bytes that were hashed, so that nobody can exchange the file in between.
            check_graph_bytes(data, str(root / file), entry)
    return bundle


def seal(content: Mapping[str, Any]) -> bytes:
    """The bytes of `bundle.json` for a content: in one form, with the digest of that form.

    Args:
        content: JSON-compatible, without `digest`.

    Raises:
        ArtifactError: it holds NaN or infinity, which JSON does not have.
    """
    try:
        # Keys that are no strings become some here, before they are sorted.
        plain = json.loads(json.dumps(dict(content), allow_nan=False))
    except ValueError as error:
        raise ArtifactError(f"{MANIFEST} cannot hold NaN or infinity: {error}") from None
    plain["digest"] = _digest(plain)
    return _canonical(plain)


def file_entry(path: str | os.PathLike[str]) -> dict[str, int | str]:
    """What `files` of the manifest holds for a file: `bytes` and `sha256`.

    Raises:
        ArtifactError: absent, unreadable, or a link, which no bundle may contain.
    """
    with _open_own(Path(path)) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _canonical(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def _digest(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(_canonical(rest)).hexdigest()


@contextmanager
def _open_own(path: Path) -> Iterator[io.BufferedReader]:
    """A file of the bundle itself, opened without following a link or waiting for a pipe."""
    name = str(path)
    safe = sum(getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    try:
        if path.is_symlink():  # O_NOFOLLOW refuses it too, without saying why
            raise ArtifactError(f"{name!r} is a symbolic link, expected the file itself: {_REMEDY}")
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | safe)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ArtifactError(f"{name!r} is not a regular file: {_REMEDY}")
            if status.st_nlink > 1:
                raise ArtifactError(
                    f"{name!r} has {status.st_nlink} names (hard links), expected one: {_REMEDY}"
                )
            yield file
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"cannot read {name!r}: {reason}: {_REMEDY}") from None


def _checked_content(path: Path, num_bytes: int, digest: str, *, keep: bool) -> bytes:
    """The content if it is to be kept, for an engine may be larger than the memory."""
    with _open_own(path) as file:
        found = os.fstat(file.fileno()).st_size
        if found != num_bytes:
            raise ArtifactError(f"{str(path)!r} has {found} bytes, expected {num_bytes}: {_REMEDY}")
        data = file.read() if keep else b""
        hashed = hashlib.sha256(data) if keep else hashlib.file_digest(file, "sha256")
    if hashed.hexdigest() != digest:
        raise ArtifactError(
            f"{str(path)!r} is damaged, its sha256 is {hashed.hexdigest()}, expected {digest}: "
            f"{_REMEDY}"
        )
    return data


def _read_manifest(path: Path) -> dict[str, Any]:
    name = str(path)
    with _open_own(path) as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{name!r} has more than {MAX_MANIFEST_BYTES} bytes: {_REMEDY}")
    try:
        content = json.loads(data.decode("ascii"), parse_constant=_refuse_constant)
        if not isinstance(content, dict):
            raise ValueError("expected an object")
        _refuse_schema(name, content.get("schema"))
        # Equal bytes leave no room for a second key of a name, or for a number beyond floats.
        whole = _canonical(content) == data and content.get("digest") == _digest(content)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
        reason = quoted(str(error))
        raise ArtifactError(f"{name!r} is damaged or no manifest ({reason}): {_REMEDY}") from None
    if not whole:
        raise ArtifactError(f"{name!r} was changed, its digest does not fit: {_REMEDY}")
    return content


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _refuse_schema(name: str, schema: object) -> None:
    """First of all, as a newer schema may have another form or digest."""
    if type(schema) is int and schema == SCHEMA:
        return
    newer = type(schema) is int and schema > SCHEMA
    remedy = "made by a newer wsss, update this one" if newer else _REMEDY
    raise ArtifactError(f"{name!r} has schema {quoted(schema)}, expected {SCHEMA}: {remedy}")


class _FaultError(Exception):
    """What is wrong, as the rest of a sentence that begins with the manifest."""


Rule = tuple[str, Callable[[Any], bool]]
"""What is expected of a value, in words and as a test."""


def _one_of(*choices: str) -> Rule:
    return f"one of {', '.join(choices)}", lambda value: _is_text(value) and value in choices


def _like(expected: str, pattern: str) -> Rule:
    return expected, lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value))


def _whole(first: int, last: int) -> Rule:
    return f"a whole number in {first} to {last}", lambda value: _is_whole(value, first, last)


def _is_whole(value: Any, first: int, last: int) -> bool:
    return type(value) is int and first <= value <= last  # a bool is an int, too


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > 1000 or not value.strip():
        return False
    # Half characters and line breaks would break the files that names are written to.
    return not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in value)


def _are_classes(value: Any) -> bool:
    if not isinstance(value, list) or not all(map(_is_text, value)):
        return False
    return 1 <= len(value) == len(set(value)) <= MAX_CLASSES and BACKGROUND_NAMES.isdisjoint(value)


def _is_palette(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, list) and len(row) == 3 and all(_is_whole(part, 0, 255) for part in row)
        for row in value
    )


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(
        _is_text(size) or _is_whole(size, 1, MAX_ELEMENTS) for size in value
    )


def _is_range(value: Any) -> bool:
    if not isinstance(value, list) or not all(_is_whole(size, 1, MAX_SIDE) for size in value):
        return False
    return len(value) == 3 and value == sorted(value)


def _are_strides(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_whole(size, 1, MAX_SIDE) for size in value.values())


def _are_graphs(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and value.keys() <= set(GRAPHS)


_TEXT: Rule = ("a line of text", _is_text)
_FLAG: Rule = ("true or false", lambda value: isinstance(value, bool))
_LIST: Rule = ("a list", lambda value: isinstance(value, list))
_TABLE: Rule = ("an object", lambda value: isinstance(value, dict))
_SOME: Rule = ("a list that is not empty", lambda value: isinstance(value, list) and bool(value))
_PRECISION = _one_of("fp32", "fp16", "int8")
_RANGE: Rule = (f"[least, usual, greatest] in 1 to {MAX_SIDE}", _is_range)
_PLAIN = r"\w(?!.*\.\.)[\w.-]{0,120}\."  # a name without folders, on any system
_NUMBERS = r"\d{1,4}(\.\d{1,4}){0,3}"

_MANIFEST: dict[str, Rule] = {
    "schema": _whole(SCHEMA, SCHEMA),
    "wsss": _TEXT,
    "method": _TEXT,
    "name": _TEXT,
    "classes": (f"1 to {MAX_CLASSES} different names, none the background's", _are_classes),
    "palette": ("rows of red, green and blue in 0 to 255", _is_palette),
    "layout": _one_of("nhwc", "nchw"),
    "precision": _PRECISION,
    "opset": _whole(*OPSETS),
    "align": _one_of("reference", "corners"),
    "padding": _TEXT,
    "strides": (f"names with whole numbers in 1 to {MAX_SIDE}", _are_strides),
    "normalisation": _TABLE,
    "settings": _TABLE,
    "sizes": _TABLE,
    "graphs": (f"one or more of {', '.join(GRAPHS)}", _are_graphs),
    "engines": _LIST,
    "files": _TABLE,
    "parity": _TABLE,
    "digest": _TEXT,
}
_SIZES: dict[str, Rule] = dict.fromkeys(("batch", "height", "width"), _RANGE)
_GRAPH: dict[str, Rule] = {
    "file": _like("a plain name that ends in .onnx", f"(?a:{_PLAIN}onnx)"),
    "precision": _PRECISION,
    "inputs": _SOME,
    "outputs": _SOME,
}
_TENSOR: dict[str, Rule] = {
    "name": _TEXT,
    "dtype": _one_of(*DTYPES),
    "shape": ("sizes from 1, and names of those that vary", _is_shape),
    "is_optional": _FLAG,
}
_ENGINE: dict[str, Rule] = {
    "file": _like("a plain name that ends in .plan", f"(?a:{_PLAIN}plan)"),
    "tensorrt": _like("numbers like 11.4.0", _NUMBERS),
    "compute_capability": _like("numbers like 9.0", _NUMBERS),
    "gpu": _TEXT,
    "version_compatible": _FLAG,
    "hardware_compatible": _FLAG,
}
_FILE: dict[str, Rule] = {
    "bytes": _whole(1, 2**50),
    "sha256": _like("64 digits of a SHA-256", "[0-9a-f]{64}"),
}


def _checked(value: Any, rules: Mapping[str, Rule], where: str = "") -> dict[str, Any]:
    """An object with exactly the keys of the rules, each value as its rule wants it."""
    if not isinstance(value, dict):
        raise _FaultError(f"has {quoted(value)} as `{where}`, expected an object")
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in rules:
            raise _FaultError(
                f"has the unknown key {quoted(prefix + key)}, expected {', '.join(rules)}"
            )
    for key, (expected, fits) in rules.items():
        if key not in value:
            raise _FaultError(f"lacks `{prefix}{key}`, expected {expected}")
        if not fits(value[key]):
            raise _FaultError(f"has {quoted(value[key])} as `{prefix}{key}`, expected {expected}")
    return value


def _bundle(root: Path, content: Mapping[str, Any]) -> Bundle:
    fields = dict(_checked(content, _MANIFEST))
    labels = len(fields["classes"]) + 1
    if len(fields["palette"]) != labels:
        raise _FaultError(f"has {len(fields['palette'])} rows as `palette`, expected {labels}")
    sizes = _checked(fields["sizes"], _SIZES, "sizes")
    graphs = fields["graphs"]
    engine = {**_ENGINE, "graph": _one_of(*graphs)}
    fields |= {
        "classes": tuple(fields["classes"]),
        "palette": tuple(map(tuple, fields["palette"])),
        "sizes": {axis: tuple(size) for axis, size in sizes.items()},
        "graphs": {name: _graph(value, f"graphs.{name}") for name, value in graphs.items()},
        "engines": tuple(
            EngineEntry(**_checked(value, engine, f"engines[{index}]"))
            for index, value in enumerate(fields["engines"])
        ),
    }
    del fields["schema"], fields["files"]
    return Bundle(folder=root, version=fields.pop("wsss"), **fields)


def _graph(value: Any, where: str) -> GraphEntry:
    fields = _checked(value, _GRAPH, where)
    sides = {}
    for side in ("inputs", "outputs"):
        tensors = [
            _checked(tensor, _TENSOR, f"{where}.{side}[{index}]")
            for index, tensor in enumerate(fields[side])
        ]
        sides[side] = tuple(TensorSpec(**{**t, "shape": tuple(t["shape"])}) for t in tensors)
    return GraphEntry(file=fields["file"], precision=fields["precision"], **sides)


def _files(entries: Mapping[str, Any], bundle: Bundle) -> dict[str, tuple[int, str]]:
    """Size and digest of each file, which are those of the graphs and engines, each one's own."""
    used = Counter(entry.file for entry in bundle.graphs.values())
    used.update(entry.file for entry in bundle.engines)
    file, times = used.most_common(1)[0]
    if times > 1:
        raise _FaultError(f"gives {file!r} to {times} graphs or engines, expected one each")
    files = {}
    for file, entry in _checked(entries, dict.fromkeys(used, _TABLE), "files").items():
        fields = _checked(entry, _FILE, f"files.{file}")
        files[file] = (fields["bytes"], fields["sha256"])
        if file.endswith(".onnx") and fields["bytes"] > MAX_GRAPH_BYTES:
            raise _FaultError(
                f"has {fields['bytes']} bytes for {file!r}, expected at most {MAX_GRAPH_BYTES}"
            )
    return files
