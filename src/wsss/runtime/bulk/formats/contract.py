"""The contract of output formats, and what all of them write alike.

A writer gives files of an image, or entries that are collected in one file, or both.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..inputs.images import LabelledImage

Need = Literal["confidence", "scores", "instances"]
"""What costs time and is computed only when a writer wants it."""


@dataclass(frozen=True)
class JobView:
    """What every output says of its origin.

    Attributes:
        classes: names without background; label value = place + 1.
        palette: (256, 3) uint8 RGB by label value.
        provenance: what decides the pixels: model digest, settings. JSON-compatible, the same in
            every run of the job.
    """

    classes: tuple[str, ...]
    palette: NDArray[np.uint8]
    provenance: dict[str, Any]


class Writer:
    """One output format; the same image gives the same bytes, always.

    A writer is made in each worker process. It may give files of each image, or entries that are
    collected into a few files when the job is complete, or both.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __init__(self, job: JobView) -> None:
        self.job = job

    def files(self, image: LabelledImage) -> Iterator[tuple[str, bytes]]:
        """Path relative to the output folder, and content, of each file of an image."""
        return iter(())

    def entry(self, image: LabelledImage) -> Any:
        """What `collect` needs of an image, JSON-compatible; None: nothing, it gets no entry."""
        return None

    def collect(self, entries: Iterable[Any]) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Files of the whole job, each as pieces of bytes.

        Args:
            entries: of all images that gave one, in the order of the list; a stream of any length
                that can be gone through more than once, and is never to be held whole.

        The pieces of a file are to be read before the next file is asked for.
        """
        return iter(())


# A backslash that would read as one of the escapes below; what XML 1.0 cannot hold; and lone
# surrogates, which some JSON parsers refuse.
_UNFIT = re.compile(
    r"\\(?=x[0-9a-f]{2}|u[0-9a-f]{4})|[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]"
)


def plain(text: str) -> str:
    r"""A name of an image or a class as every output format writes it.

    Most names stay as they are, with spaces, quotes, newlines and any script. A byte that is not
    UTF-8 (a surrogate escape of `os.fsdecode`) becomes `\xff`, as do control characters other
    than tab, newline and carriage return; other lone surrogates, U+FFFE and U+FFFF become
    `\ud800`. A backslash that would read as one of these becomes `\x5c`, so that no two names
    are written alike.
    """
    return _UNFIT.sub(_escape, text)


def origin(job: JobView) -> dict[str, Any]:
    """What made an output and what its values mean, JSON-compatible, strings as `plain` gives.

    The class list, the colours by label value (background first, then the classes), and all of
    the job's provenance.
    """
    described = {
        "classes": list(job.classes),
        "palette": [colour(job, value) for value in range(len(job.classes) + 1)],
        **job.provenance,
    }
    plain_values: dict[str, Any] = _plain_values(described)
    return plain_values


def origin_text(job: JobView) -> str:
    """`origin` as one line of ASCII: compact JSON with sorted keys."""
    return compact_json(origin(job), sort_keys=True)


def compact_json(value: Any, *, sort_keys: bool = False) -> str:
    """JSON in ASCII without spaces; a number that JSON lacks (NaN) is our bug and raises."""
    return json.dumps(value, separators=(",", ":"), sort_keys=sort_keys, allow_nan=False)


def plain_scores(scores: NDArray[np.float32]) -> list[float]:
    """Scores as the shortest decimals that read back as the same float32."""
    return [float(str(score)) for score in scores]


def colour(job: JobView, value: int) -> str:
    """The colour of a label value, as `#rrggbb`."""
    return "#" + bytes(job.palette[value].tolist()).hex()


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _plain_values(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain(str(key)): _plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_values(item) for item in value]
    return value
