"""Small pictures of images of a job: the photograph, its labels over it, and its instances."""

import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....errors import DataError, WsssError
from ...instances.files import CLASSES, OBJECTS, decode_ids
from ...io.files import CODES, BadFile, read_file
from ...io.image_io import DEFAULT_MAX_PIXELS, byte_limit, decode_label_map
from ...report.document import Encoded, encoded
from ...report.pictures import Picture, draw_labels, shrink, shrink_labels
from ..formats.contract import JobView
from ..formats.image_files import FOLDER as MASKS
from ..image_list.frozen_list import FrozenList
from ..inputs.images import ImageRef, read_pixels
from ..plan import TAR
from ..work.outputs import SHARDS
from ..work.records import unit_name
from .sampling import Shown

SIDE = 208
"""Longer side of a picture in pixels."""
_QUALITY = 80

Labels = NDArray[np.uint8]
Ids = NDArray[np.uint16]


@dataclass(frozen=True)
class Thumbnail:
    """Pictures of an image, or why there is none in the place of one.

    Attributes:
        labels: None: it needs the photograph.
        instances: as overlays draw them; None likewise, and where the job writes no pair of PNGs.
    """

    photo: Encoded | str
    labels: Encoded | str | None = None
    instances: Encoded | str | None = None


def shows_instances(view: JobView) -> bool:
    """Whether there are pictures of instances: the job writes the pair of PNGs."""
    return "instances" in view.provenance["formats"]


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
        return Thumbnail(CODES[error.code])
    except WsssError as error:  # a package that its URL needs
        return Thumbnail(str(error))
    small = shrink(photo, SIDE)

    def over(read: Callable[[Shown, ImageRef], tuple[Labels, Ids | None]]) -> Encoded | str:
        try:
            return _overlay(photo, small, view, *read(shown, ref))
        except DataError as error:
            return CODES[error.code] if isinstance(error, BadFile) else str(error)

    instances = over(masks.instances) if shows_instances(view) else None
    return Thumbnail(encoded(small, _QUALITY), over(masks.labels), instances)


def _overlay(
    photo: Picture, small: Picture, view: JobView, labels: Labels, ids: Ids | None
) -> Encoded:
    for stored in (labels,) if ids is None else (labels, ids):
        if stored.shape != photo.shape[:2]:
            raise DataError("the mask has another size than the image")
    drawn = draw_labels(
        small,
        shrink_labels(labels, SIDE),
        palette=view.palette,
        ids=None if ids is None else shrink_labels(ids, SIDE),
    )
    return encoded(drawn, _QUALITY)


class _Masks:
    """Reads label maps of a job, or its instances, from their folders or from tars."""

    def __init__(self, out: Path, formats: Iterable[str]) -> None:
        self._out, self._formats = out, frozenset(formats)

    def labels(self, shown: Shown, ref: ImageRef) -> tuple[Labels, None]:
        """Of an image.

        Raises:
            DataError: there are none, or they cannot be read.
        """
        if "png" not in self._formats:
            raise DataError("the job writes no masks (format png)")
        return decode_label_map(self._file(MASKS, shown, ref), "mask"), None

    def instances(self, shown: Shown, ref: ImageRef) -> tuple[Labels, Ids]:
        """Of an image: the label value of each, and their ids.

        Raises:
            DataError: there are none, or they cannot be read.
        """
        classes = decode_label_map(self._file(CLASSES, shown, ref), "classes of instances")
        return classes, decode_ids(self._file(OBJECTS, shown, ref), "instance ids").ids

    def _file(self, folder: str, shown: Shown, ref: ImageRef) -> bytes:
        limit = byte_limit(DEFAULT_MAX_PIXELS)
        if TAR in self._formats:
            return _member(self._out, folder, shown, limit)
        return read_file(self._out / folder / f"{ref.output}.png", max_bytes=limit)


def _member(out: Path, folder: str, shown: Shown, max_bytes: int) -> bytes:
    wanted = f"{shown.record.index:09d}.{folder}.png"
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
