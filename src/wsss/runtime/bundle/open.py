"""Bundles: a folder with `bundle.json`, ONNX graphs and engines, read without trust.

The digests tell that a bundle is whole, not who made it. Graphs are therefore checked as a
stranger's; an engine (`*.plan`) cannot be: it is a program for the GPU, as good as its source.
"""

import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import ArtifactError, short_repr
from .graph_check import check_graph
from .manifest import SCHEMA, Bundle, EngineEntry, GraphEntry, ManifestError, bundle_of, files_of

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "Bundle",
    "EngineEntry",
    "GraphEntry",
    "check_again",
    "file_entry",
    "is_bundle",
    "named_files",
    "open_bundle",
    "seal",
]

MANIFEST = "bundle.json"
MAX_MANIFEST_BYTES = 16 * 2**20

_REMEDY = "export the bundle again, or copy it again from where it came"


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether a folder says that it is a bundle; nothing is checked."""
    return os.path.isfile(os.path.join(path, MANIFEST))


def open_bundle(folder: str | os.PathLike[str], *, partial: bool = False) -> Bundle:
    """Read a bundle and check every file that it names; other files are not looked at.

    Args:
        folder: may be a symbolic link; the files in it may not, nor have a second hard link,
            through which somebody could change them or have them show another file.
        partial: accept that files are absent; `Bundle.absent` then names them.

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
        bundle = bundle_of(root, content)
        files = files_of(content["files"], bundle)
        absent = frozenset(file for file in files if partial and not os.path.lexists(root / file))
        bundle = replace(bundle, files=files, absent=absent)
    except ManifestError as fault:
        raise ArtifactError(f"{str(path)!r} {fault}: {_REMEDY}") from None
    graphs = {entry.file: entry for entry in bundle.graphs.values()}
    for file, (num_bytes, digest) in files.items():
        if file in absent:
            continue
        entry = graphs.get(file)
        data = _checked_content(root / file, num_bytes, digest, keep=entry is not None)
        if entry:
            # The bytes that were hashed; whoever opens the file later calls `check_again`.
            check_graph(data, str(root / file), entry)
    return bundle


def named_files(folder: str | os.PathLike[str]) -> set[str]:
    """The manifest of a bundle and the files that it names; none of them is looked at.

    Raises:
        ArtifactError: the manifest is not one of ours.
    """
    content = _read_manifest(Path(folder, MANIFEST))
    files = content.get("files")
    return {MANIFEST, *(files if isinstance(files, dict) else ())}


def check_again(bundle: Bundle, file: str) -> Path:
    """A file of an opened bundle, which must still be the one that was checked.

    Raises:
        ArtifactError: it was exchanged since.
    """
    path = bundle.folder / file
    num_bytes, digest = bundle.files[file]
    _checked_content(path, num_bytes, digest, keep=False)
    return path


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
        reason = short_repr(str(error))
        raise ArtifactError(f"{name!r} is damaged or no manifest ({reason}): {_REMEDY}") from None
    if not whole:
        raise ArtifactError(f"{name!r} was changed, its digest does not fit: {_REMEDY}")
    return content


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _refuse_schema(name: str, schema: object) -> None:
    """First of all, as a newer schema may have another form or digest."""
    if type(schema) is int and 1 <= schema <= SCHEMA:
        return
    newer = type(schema) is int and schema > SCHEMA
    remedy = "made by a newer wsss, update this one" if newer else _REMEDY
    raise ArtifactError(
        f"{name!r} has schema {short_repr(schema)}, expected 1 to {SCHEMA}: {remedy}"
    )
