"""Soft scores of every class, for those who train on them."""

import io
import zipfile
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..inputs.images import LabelledImage
from .contract import JobView, Need, Writer
from .text import origin_text, plain

_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The first date that a zip file can hold."""


class ScoresWriter(Writer):
    """`scores/<output>.npz`, for `np.load`.

    scores: (C + 1, h, w) float16, plane 0 the background.
    classes: (C,) names without background.
    wsss: the origin, JSON.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"scores"})

    def __init__(self, job: JobView) -> None:
        super().__init__(job)
        self._described = {
            "classes": np.array([plain(name) for name in job.classes], np.str_),
            "wsss": np.array(origin_text(job)),
        }

    def files(self, image: LabelledImage) -> Iterator[tuple[str, bytes]]:
        assert image.scores is not None
        arrays = {"scores": image.scores.astype(np.float16), **self._described}
        yield f"scores/{image.ref.output}.npz", _encode_npz(arrays)


def _encode_npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    """What `np.savez_compressed` writes, with a date that never changes.

    Level 1: level 6 saves an eighth and takes half as long again; planes of absent classes vanish
    at any level.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy", _EARLIEST)
            archive.writestr(
                member, content.getbuffer(), compress_type=zipfile.ZIP_DEFLATED, compresslevel=1
            )
    return buffer.getvalue()
