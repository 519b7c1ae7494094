"""Objects, one a line, compressed: the same objects give the same bytes."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ....errors import ArtifactError

SUFFIX = ".jsonl.gz"
_MAX_LINE = 1 << 26
"""Bytes; a line of a scanned map's polygons is long, that of an attack longer."""


def pack(lines: Iterable[Any]) -> bytes:
    """Content of a file; ASCII, keys sorted, no time stamp."""
    text = "".join(
        json.dumps(line, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n"
        for line in lines
    )
    return gzip.compress(text.encode("ascii"), 6, mtime=0)


def read_lines(path: Path) -> Iterator[Any]:
    """Objects of a file, one after the other; those not asked for are not read.

    Raises:
        ArtifactError: absent, damaged, or no such file.
    """
    try:
        with gzip.open(path, "rb") as file:
            while line := file.readline(_MAX_LINE):
                if not line.endswith(b"\n"):
                    raise ValueError("a line does not end")
                yield json.loads(line)
    except (OSError, EOFError, ValueError, zlib.error, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ArtifactError(
            f"'{path}' is damaged or absent ({reason}): remove it and run the job again"
        ) from error
