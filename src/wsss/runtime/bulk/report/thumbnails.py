"""Small pictures of images of a job: the photograph, and its labels over it."""

import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....errors import DataError, WsssError
from ...bad_files import CODES, BadFile
from ...files import read_file
from ...image_io import DEFAULT_MAX_PIXELS, byte_limit, decode_label_map
from ...pictures import Picture, draw_labels, shrink, shrink_labels
from ...report.document import Encoded, encoded
from ..frozen_list import FrozenList
from ..images import ImageRef
from ..plan import TAR
from ..read import read_pixels
from ..records import unit_name
from ..sinks import SHARDS
from ..writers.contract import JobView
from ..writers.png import FOLDER as MASKS
from .chosen import Shown

SIDE = 208
"""Longer side of a picture in pixels."""
_QUALITY = 80

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Thumbnail:
    """Two pictures, or why there is none in the place of one; None: it needs the photograph."""

    photo: Encoded | str
    labels: Encoded | str | None


def draw_thumbnails(
    out: Path, images: FrozenList, view: JobView, wanted: Iterable[Shown]
) -> dict[int, Thumbnail]:
    """Index of an image -> its pictures; one image at a time is in memory at its full size.

    Args:
        wanted: in the order of the list.

    Raises:
        ArtifactError: a part of the list is damaged.
    """
    masks = _Masks(out, view.provenance["formats"])
    refs: list[ImageRef] = []
    unit_of_refs, drawn = -1, {}
    for shown in wanted:
        if shown.unit != unit_of_refs:
            refs, unit_of_refs = images.unit(shown.unit), shown.unit
        ref = refs[shown.record.index - images.first(shown.unit)]
        drawn[shown.record.index] = _draw(ref, shown, masks, view)
    return drawn


def _draw(ref: ImageRef, shown: Shown, masks: "_Masks", view: JobView) -> Thumbnail:
    try:
        photo = read_pixels(ref, DEFAULT_MAX_PIXELS)
    except BadFile as error:
        return Thumbnail(CODES[error.code], None)
    except WsssError as error:  # a package that its URL needs
        return Thumbnail(str(error), None)
    small = shrink(photo, SIDE)
    try:
        labels: Encoded | str = _overlay(photo, small, masks.read(shown, ref), view)
    except DataError as error:
        labels = CODES[error.code] if isinstance(error, BadFile) else str(error)
    return Thumbnail(encoded(small, _QUALITY), labels)


def _overlay(photo: Picture, small: Picture, labels: Labels, view: JobView) -> Encoded:
    if labels.shape != photo.shape[:2]:
        raise DataError("the mask has another size than the image")
    drawn = draw_labels(small, shrink_labels(labels, SIDE), palette=view.palette)
    return encoded(drawn, _QUALITY)


class _Masks:
    """Reads label maps of a job, from their folder or from tars."""

    def __init__(self, out: Path, formats: Iterable[str]) -> None:
        self._out, self._formats = out, frozenset(formats)

    def read(self, shown: Shown, ref: ImageRef) -> Labels:
        """Of an image.

        Raises:
            DataError: there is none, or it cannot be read.
        """
        if "png" not in self._formats:
            raise DataError("the job writes no masks (--format png)")
        limit = byte_limit(DEFAULT_MAX_PIXELS)
        if TAR in self._formats:
            data = _member(self._out, shown, limit)
        else:
            data = read_file(self._out / MASKS / f"{ref.output}.png", max_bytes=limit)
        return decode_label_map(data, "mask")


def _member(out: Path, shown: Shown, max_bytes: int) -> bytes:
    wanted = f"{shown.record.index:09d}.{MASKS}.png"
    try:
        with tarfile.open(out / SHARDS / f"{unit_name(shown.unit)}.tar", "r:") as tar:
            for info in tar:
                if info.name == wanted and info.isreg() and info.size <= max_bytes:
                    file = tar.extractfile(info)
                    assert file is not None  # for regular files
                    return file.read()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"the unit's tar cannot be read ({error})") from error
    raise DataError("the unit's tar lacks the mask")
