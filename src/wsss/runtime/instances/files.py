"""Instance maps as a pair of PNGs in VOC's layout: ids of objects beside their classes.

`SegmentationObject/NAME.png` has the ids: up to 254 as a palette PNG, where 255 says nothing; more
as a grey PNG of 16 bits, where 65535 does and 255 is an id like any other.
`SegmentationClass/NAME.png` has the class under each id.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ..io.files import read_file
from ..io.image_io import (
    DEFAULT_MAX_PIXELS,
    byte_limit,
    decode_png,
    encode_grey,
    encode_label_map,
    label_indices,
)
from ..io.palette import IGNORE_INDEX
from .instance_map import MAX_INSTANCES

OBJECTS, CLASSES = "SegmentationObject", "SegmentationClass"
"""Folders of the pair."""
SCORES = "scores"
"""Keyword of the text chunk that holds the scores: a JSON list, that of id 1 first."""
_MOST_OF_A_PALETTE = IGNORE_INDEX - 1
_NOTHING = MAX_INSTANCES + 1


@dataclass(frozen=True)
class StoredIds:
    """The content of a file of ids.

    Attributes:
        ids: (H, W) uint16, 0 for background and for what the file says nothing about.
        void: (H, W) bool, where it says nothing.
        scores: of ids 1, 2, ...; None: the file has none.
    """

    ids: NDArray[np.uint16]
    void: NDArray[np.bool_]
    scores: NDArray[np.float32] | None


def encode_ids(
    ids: NDArray[np.uint16],
    void: NDArray[np.bool_],
    scores: Sequence[float] | None = None,
    text: Mapping[str, str] | None = None,
) -> bytes:
    """Ids as the bytes of a PNG; see the module.

    Args:
        ids: (H, W) uint16, up to `MAX_INSTANCES`.
        void: (H, W) bool, what has no statement.
        scores: of ids 1, 2, ...
        text: see `encode_label_map`.
    """
    chunks = dict(text or {})
    if scores is not None:
        chunks[SCORES] = json.dumps(list(scores), separators=(",", ":"), allow_nan=False)
    if int(ids.max(initial=0)) > _MOST_OF_A_PALETTE:
        return encode_grey(np.where(void, np.uint16(_NOTHING), ids), chunks)
    return encode_label_map(
        np.where(void, np.uint8(IGNORE_INDEX), ids.astype(np.uint8)), None, chunks
    )


def read_ids(path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> StoredIds:
    """The ids of a PNG; see `decode_ids`.

    Raises:
        DataError: no such file, or see `decode_ids`.
    """
    name = os.fspath(path)
    data = read_file(name, max_bytes=byte_limit(max_pixels))
    return decode_ids(data, name, max_pixels=max_pixels)


def decode_ids(data: bytes, name: str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> StoredIds:
    """The ids in the bytes of a PNG: of 16 bits, or one that `decode_label_map` reads.

    Args:
        name: for messages.

    Raises:
        DataError: not such a file, damaged, or with scores that are none.
    """
    stored = decode_png(data, name, max_pixels=max_pixels)
    is_wide = stored.bit_depth == 16 and stored.mode.startswith("I")
    ids = (stored.pixels if is_wide else label_indices(stored, name)).astype(np.uint16)
    void = ids == (_NOTHING if is_wide else IGNORE_INDEX)
    ids[void] = 0
    return StoredIds(ids, void, _scores(stored.text.get(SCORES), name))


def _scores(text: str | None, name: str) -> NDArray[np.float32] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    is_list = isinstance(found, list) and len(found) <= MAX_INSTANCES
    if not is_list or not all(type(s) in (int, float) and 0 <= s <= 1 for s in found):
        raise DataError(f"instance ids {name!r} have scores that are no list of numbers 0 to 1")
    return np.array(found, np.float32)
