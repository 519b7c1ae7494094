"""What `bundle.json` says: its fields, the rule for each, and the bundle that they describe."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ...errors import ArtifactError, short_repr
from ..backends.contract import TensorSpec
from ..io.image_labels import BACKGROUND_NAMES
from .graph_tensors import DTYPES, MAX_ELEMENTS, MAX_GRAPH_BYTES, OPSETS
from .inputs import Layout

if TYPE_CHECKING:
    from ..refine.geometry import Align  # which imports torch

SCHEMA = 2
"""Counts up when an older program could not read a newer `bundle.json` any more. Manifests of
schema 1, which name no modes, are read too: see `_from_schema_1`."""
MAX_CLASSES = 254
"""A label map has 256 values; 0 is the background, 255 no statement."""
MAX_SIDE = 65_536


class ManifestError(Exception):
    """What is wrong, as the rest of a sentence that begins with the manifest."""


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
class ModeEntry:
    """A mode that the bundle's method labels in; the bundle may lack the graph.

    Attributes:
        graph: gives label, confidence and scores.
        settings: key of `Bundle.settings` with the dense CRF of this mode.
        crf: whether that CRF is part of the mode.
    """

    graph: str
    settings: str
    crf: bool


@dataclass(frozen=True)
class AffinityEntry:
    """The graph that tells which cells belong together, and its output that the walk takes."""

    graph: str
    output: str


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were all checked.

    Attributes:
        folder: where it was opened; may be read-only.
        version: of the wsss that wrote it.
        name: of the recipe.
        classes: without the background, whose label is 0.
        palette: RGB of the labels 0 to the number of classes.
        layout: order of the axes of an image.
        align: how score maps are resized.
        sizes: batch, height, width -> least, usual and greatest.
        settings, normalisation, parity: as the exporter of the method wrote them.
        modes: by name.
        affinity: None: the method has no walk.
        instances: graphs that tell single objects, in the order in which they run; empty: the
            method tells none.
        files: bytes and SHA-256 of every graph and engine.
        absent: files that were left out of the folder; see `open_bundle`.
    """

    folder: Path
    version: str
    method: str
    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    layout: Layout
    precision: str
    opset: int
    align: "Align"
    padding: str
    strides: dict[str, int]
    normalisation: dict[str, Any]
    settings: dict[str, Any]
    sizes: dict[str, tuple[int, int, int]]
    graphs: dict[str, GraphEntry]
    engines: tuple[EngineEntry, ...]
    parity: dict[str, Any]
    digest: str
    modes: dict[str, ModeEntry] = field(default_factory=dict)
    affinity: AffinityEntry | None = None
    instances: tuple[str, ...] = ()
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()

    def has(self, graph: str) -> bool:
        """Whether the ONNX file of a graph is there."""
        return graph in self.graphs and self.graphs[graph].file not in self.absent

    def graph_path(self, name: str) -> Path:
        """The ONNX file of a graph.

        Raises:
            ArtifactError: the bundle has no graph of this name.
        """
        if not self.has(name):
            there = ", ".join(graph for graph in self.graphs if self.has(graph))
            raise ArtifactError(
                f"bundle {str(self.folder)!r} has no graph {short_repr(name)}: it has {there}"
            )
        return self.folder / self.graphs[name].file

    def engines_of(self, name: str) -> tuple[EngineEntry, ...]:
        """The engines of a graph, none if it was not compiled.

        Raises:
            ArtifactError: the bundle has no graph of this name.
        """
        if name not in self.graphs:
            self.graph_path(name)  # which says so
        engines = (engine for engine in self.engines if engine.graph == name)
        return tuple(engine for engine in engines if engine.file not in self.absent)


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


def _are_named(value: Any) -> bool:
    return isinstance(value, dict) and all(re.fullmatch(_NAME, name) for name in value)


def _are_graphs(value: Any) -> bool:
    return _are_named(value) and bool(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(name, str) and bool(re.fullmatch(_NAME, name)) for name in value
    )


_TEXT: Rule = ("a line of text", _is_text)
_FLAG: Rule = ("true or false", lambda value: isinstance(value, bool))
_LIST: Rule = ("a list", lambda value: isinstance(value, list))
_TABLE: Rule = ("an object", lambda value: isinstance(value, dict))
_SOME: Rule = ("a list that is not empty", lambda value: isinstance(value, list) and bool(value))
_PRECISION = _one_of("fp32", "fp16", "int8")
_RANGE: Rule = (f"[least, usual, greatest] in 1 to {MAX_SIDE}", _is_range)
_NAME = r"(?a:[A-Za-z]\w{0,60})"
_PLAIN = r"\w(?!.*\.\.)[\w.-]{0,120}\."  # a name without folders, on any system
_NUMBERS = r"\d{1,4}(\.\d{1,4}){0,3}"

_MANIFEST: dict[str, Rule] = {
    "schema": _whole(SCHEMA, SCHEMA),
    "wsss": _TEXT,
    "method": _TEXT,
    "name": _TEXT,
    "classes": (f"1 to {MAX_CLASSES} different names, none the background's", _are_classes),
    "palette": ("rows of red, green and blue in 0 to 255", _is_palette),
    "layout": _one_of(*get_args(Layout)),
    "precision": _PRECISION,
    "opset": _whole(*OPSETS),
    "align": _one_of("reference", "corners"),
    "padding": _TEXT,
    "strides": (f"names with whole numbers in 1 to {MAX_SIDE}", _are_strides),
    "normalisation": _TABLE,
    "settings": _TABLE,
    "sizes": _TABLE,
    "graphs": ("one or more graphs with plain names", _are_graphs),
    "modes": ("modes with plain names", _are_named),
    "affinity": ("an object or null", lambda value: value is None or isinstance(value, dict)),
    "instances": ("a list of names of graphs", _are_names),
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
_MODE: dict[str, Rule] = {
    "graph": _like("a plain name", _NAME),
    "settings": _like("a plain name", _NAME),
    "crf": _FLAG,
}
_AFFINITY: dict[str, Rule] = {"graph": _like("a plain name", _NAME), "output": _TEXT}
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
        raise ManifestError(f"has {short_repr(value)} as '{where}', expected an object")
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in rules:
            raise ManifestError(
                f"has the unknown key {short_repr(prefix + key)}, expected {', '.join(rules)}"
            )
    for key, (expected, fits) in rules.items():
        if key not in value:
            raise ManifestError(f"lacks '{prefix}{key}', expected {expected}")
        if not fits(value[key]):
            raise ManifestError(
                f"has {short_repr(value[key])} as '{prefix}{key}', expected {expected}"
            )
    return value


def bundle_of(root: Path, content: Mapping[str, Any]) -> Bundle:
    """A bundle as its manifest describes it; no file is looked at.

    Raises:
        ManifestError: a key is missing, unknown, or has a value that it cannot have.
    """
    if content.get("schema") == 1:
        content = _from_schema_1(content)
    fields = dict(_checked(content, _MANIFEST))
    labels = len(fields["classes"]) + 1
    if len(fields["palette"]) != labels:
        raise ManifestError(f"has {len(fields['palette'])} rows as 'palette', expected {labels}")
    sizes = _checked(fields["sizes"], _SIZES, "sizes")
    graphs = fields["graphs"]
    engine = {**_ENGINE, "graph": _one_of(*graphs)}
    fields |= {
        "classes": tuple(fields["classes"]),
        "palette": tuple(map(tuple, fields["palette"])),
        "sizes": {axis: tuple(size) for axis, size in sizes.items()},
        "graphs": {name: _graph(value, f"graphs.{name}") for name, value in graphs.items()},
        "modes": {
            name: ModeEntry(**_checked(value, _MODE, f"modes.{name}"))
            for name, value in fields["modes"].items()
        },
        "affinity": (
            AffinityEntry(**_checked(fields["affinity"], _AFFINITY, "affinity"))
            if fields["affinity"] is not None
            else None
        ),
        "instances": tuple(fields["instances"]),
        "engines": tuple(
            EngineEntry(**_checked(value, engine, f"engines[{index}]"))
            for index, value in enumerate(fields["engines"])
        ),
    }
    del fields["schema"], fields["files"]
    return Bundle(folder=root, version=fields.pop("wsss"), **fields)


def _from_schema_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest from before modes were named, whose graphs had fixed names.

    Raises:
        ManifestError: it has other graphs.
    """
    graphs, settings = content.get("graphs"), content.get("settings")
    if not isinstance(graphs, dict) or not _are_graphs(graphs) or not isinstance(settings, dict):
        raise ManifestError(
            f"has {short_repr(graphs)} as 'graphs' and {short_repr(settings)} as 'settings', "
            "expected graphs with plain names, and an object"
        )
    modes = {"segmenter": {"graph": "segmenter", "settings": "segmenter", "crf": False}}
    if "walk" in settings:  # of methods with a walk, and of no other
        walk = {"graph": "label", "settings": "walk"}
        modes |= {"walk": {**walk, "crf": False}, "labels": {**walk, "crf": True}}
    affinity = next(
        (
            {"graph": name, "output": output}
            for name, entry in graphs.items()
            for output in ("affinity", "boundary")
            if output in _output_names(entry)
        ),
        None,
    )
    has_instances = affinity is not None and "instances" in settings
    added = {
        "schema": SCHEMA,
        "modes": modes,
        "affinity": affinity,
        "instances": ["cam", affinity["graph"], "refine"] if affinity and has_instances else [],
    }
    return {**content, **added}


def _output_names(entry: Any) -> list[Any]:
    """Names of a graph's outputs, in a manifest that was not checked yet."""
    outputs = entry.get("outputs") if isinstance(entry, dict) else None
    rows = outputs if isinstance(outputs, list) else []
    return [row.get("name") for row in rows if isinstance(row, dict)]


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


def files_of(entries: Mapping[str, Any], bundle: Bundle) -> dict[str, tuple[int, str]]:
    """Size and digest of each file, which are those of the graphs and engines, each one's own.

    Raises:
        ManifestError: as of `bundle_of`.
    """
    used = Counter(entry.file for entry in bundle.graphs.values())
    used.update(entry.file for entry in bundle.engines)
    file, times = used.most_common(1)[0]
    if times > 1:
        raise ManifestError(f"gives {file!r} to {times} graphs or engines, expected one each")
    files = {}
    for file, entry in _checked(entries, dict.fromkeys(used, _TABLE), "files").items():
        fields = _checked(entry, _FILE, f"files.{file}")
        files[file] = (fields["bytes"], fields["sha256"])
        if file.endswith(".onnx") and fields["bytes"] > MAX_GRAPH_BYTES:
            raise ManifestError(
                f"has {fields['bytes']} bytes for {file!r}, expected at most {MAX_GRAPH_BYTES}"
            )
    return files
