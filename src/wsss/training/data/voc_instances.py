"""Instances of a VOC devkit: ids of objects, whose classes are those of the mask below."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...runtime.instances.files import read_ids
from ...runtime.io.palette import IGNORE_INDEX
from .image_set import MaskSource, content_digest
from .instance_truth import InstanceTruth


@dataclass(frozen=True)
class VocInstances:
    """Ids of `SegmentationObject`, whose classes are those of the mask under each.

    255 in either file is void; so is what has a class but no id, because nobody says which objects
    it is of. An id that is void everywhere is none.
    """

    path: Path
    mask: MaskSource

    def load(self) -> InstanceTruth:
        """See `InstanceSource.load`."""
        stored, mask = read_ids(self.path), self.mask.load()
        if stored.ids.shape != mask.shape:
            height, width = stored.ids.shape
            raise DataError(
                f"instance ids '{self.path}' are {height} x {width}, the mask of classes is "
                f"{mask.shape[0]} x {mask.shape[1]}: they must have the same size"
            )
        ids = np.where(mask == IGNORE_INDEX, np.uint16(0), stored.ids)
        found, classes = classes_under(ids, mask, str(self.path))
        places = np.zeros(int(found.max(initial=0)) + 1, np.uint16)
        places[found] = np.arange(1, len(found) + 1)
        void = stored.void | ((mask != 0) & (ids == 0))
        return InstanceTruth(places[ids], classes, void)

    def fingerprint(self) -> str:
        """See `InstanceSource.fingerprint`: of the bytes of the file."""
        return content_digest(self.path)


def classes_under(
    ids: NDArray[np.uint16], mask: NDArray[np.uint8], where: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ids that occur, ascending, and the class index of each.

    Args:
        ids: (H, W), 0 for none.
        mask: (H, W), not 255 under an id.
        where: the file of the ids, for errors.

    Raises:
        DataError: an id lies on several classes, or on the background.
    """
    # With each id the indices under it; counting is several times as fast as sorting.
    pairs = np.flatnonzero(np.bincount((ids.astype(np.int64) * 256 + mask).ravel()))
    found, values = np.divmod(pairs[pairs >= 256], 256)
    twice = found[1:][found[1:] == found[:-1]]
    if len(twice):
        under = ", ".join(map(str, values[found == twice[0]].tolist()))
        raise DataError(
            f"instance {twice[0]} of '{where}' lies on the indices {under} of its mask, expected "
            "one class under each instance"
        )
    if (values == 0).any():
        raise DataError(
            f"instance {found[values == 0][0]} of '{where}' lies on the background of its mask, "
            "expected a class"
        )
    return found, values - 1
