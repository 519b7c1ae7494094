"""An image set: images, the classes in each, the lists they belong to, and masks to measure by.

The class list belongs to the set and is never assumed. Class indices count from 0 without the
background; a mask holds index + 1, 0 for background and 255 for pixels that do not count.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, DataError
from ...runtime.io.image_io import image_size, read_label_map
from ...runtime.io.palette import IGNORE_INDEX
from .findings import Finding

MAX_CLASSES = 254
"""A mask is uint8, 0 is the background and 255 is nothing."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class InstanceTruth:
    """The instances of one image, each with at least a pixel; they do not overlap.

    Attributes:
        ids: (H, W) uint16: 0 for none, r + 1 for instance r.
        classes: (R,) int64, class index of each.
        void: (H, W) bool, where nothing is known; there `ids` is 0.
    """

    ids: NDArray[np.uint16]
    classes: NDArray[np.int64]
    void: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.classes)


class InstanceSource(Protocol):
    """Where the instances of an image come from."""

    def load(self) -> InstanceTruth:
        """Read them.

        Raises:
            DataError: unreadable, or not what they should be.
        """
        ...

    def fingerprint(self) -> str:
        """Short text that differs where the instances differ, without decoding them."""
        ...


class MaskSource(Protocol):
    """Where the mask of an image comes from."""

    def load(self) -> NDArray[np.uint8]:
        """(H, W) uint8: 0 background, class index + 1, or 255.

        Raises:
            DataError: unreadable, or a label beyond the class list.
        """
        ...

    def fingerprint(self) -> str:
        """Short text that differs where the mask differs, without decoding it."""
        ...


@dataclass(frozen=True)
class MaskFile:
    """A PNG of class indices (see `read_label_map`) for a set of `num_classes` classes."""

    path: Path
    num_classes: int

    def load(self) -> NDArray[np.uint8]:
        """See `MaskSource.load`."""
        mask = read_label_map(self.path)
        highest = int(np.where(mask == IGNORE_INDEX, 0, mask).max())
        if highest > self.num_classes:
            raise DataError(
                f"mask '{self.path}' holds index {highest}, expected 0..{self.num_classes} or 255: "
                "add the missing names to classes.txt, or mend the mask"
            )
        return mask

    def fingerprint(self) -> str:
        """See `MaskSource.fingerprint`: of the bytes of the file.

        Its size would not do: a mask drawn anew may well be as long.
        """
        return content_digest(self.path)


@dataclass(frozen=True)
class Sample:
    """One image of a set.

    Attributes:
        name: unique in the set; the path below the images' folder without extension, with `/`.
            What is made of the image is called `NAME.png`, `NAME.npz`.
        labels: class indices in ascending order; () is background alone, None is not known.
        splits: names of the lists that hold it.
        source: collection that the image comes from, where the set says so; measured apart.
        instances: the single objects of the mask, where the set has them.
    """

    name: str
    image_path: Path
    labels: tuple[int, ...] | None
    splits: tuple[str, ...] = ()
    mask: MaskSource | None = None
    source: str | None = None
    instances: InstanceSource | None = None

    def label_vector(self, num_classes: int) -> NDArray[np.float32]:
        """(C,) float32 of 0 and 1.

        Raises:
            DataError: there are no image-level labels.
        """
        if self.labels is None:
            raise DataError(
                f"image '{self.name}' has no image-level labels: add it to the label file "
                "(an empty entry means background only)"
            )
        vector = np.zeros(num_classes, np.float32)
        vector[list(self.labels)] = 1
        return vector

    def load_mask(self) -> NDArray[np.uint8]:
        """(H, W) uint8 mask, of the image's displayed size.

        Raises:
            DataError: there is no mask, it does not fit its image, or holds an unknown label.
        """
        if self.mask is None:
            raise DataError(f"image '{self.name}' has no mask")
        mask = self.mask.load()
        self._require_size(mask.shape)
        return mask

    def load_instances(self) -> InstanceTruth:
        """The single objects, on the image's displayed size.

        Raises:
            DataError: there are none to be read, they do not fit the image, or are not what they
            should be; see `InstanceSource`.
        """
        if self.instances is None:
            raise DataError(f"image '{self.name}' has no instance masks")
        truth = self.instances.load()
        self._require_size(truth.ids.shape)
        return truth

    def _require_size(self, size: tuple[int, ...]) -> None:
        height, width = image_size(self.image_path)
        if size != (height, width):
            raise DataError(
                f"mask of image '{self.name}' is {size[0]} x {size[1]}, its image "
                f"'{self.image_path}' is {height} x {width}: they must have the same size"
            )


@dataclass(frozen=True)
class ImageSet:
    """Images that share a class list.

    Attributes:
        root: folder of the image set.
        layout: the layout that was detected, in words.
        classes: class names, background not counted; the index in this tuple is the class index.
        samples: the images, each with `name`, `image_path`, `labels` (class indices) and `mask`.
        findings: faults that were found with `strict=False`.
    """

    root: Path
    layout: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the lists, sorted."""
        return tuple(sorted({split for sample in self.samples for split in sample.splits}))

    def select(self, split: str | None) -> "ImageSet":
        """The images of a list; None means all.

        Raises:
            DataError: no such list, or no images.
        """
        if split is None:
            samples = self.samples
        else:
            samples = tuple(sample for sample in self.samples if split in sample.splits)
        if samples:
            return replace(self, samples=samples)
        if split is None:
            raise DataError(f"image set '{self.root}' has no images")
        known = ", ".join(f"'{name}'" for name in self.splits) or "none"
        raise DataError(
            f"image set '{self.root}' has no images in a list '{split}', its lists are: {known}"
        )

    def require_classes(self, classes: Sequence[str], owner: str) -> None:
        """Refuse a model of other classes, to which the indices of this set mean something else.

        Args:
            classes: that the model knows.
            owner: the model in the message, such as `run 'runs/photos'`.

        Raises:
            ArtifactError: names both lists.
        """
        if self.classes != tuple(classes):
            raise ArtifactError(
                f"{owner} knows the classes {', '.join(classes)}; the image set has "
                f"{', '.join(self.classes)}: take the set that it was trained on, or one like it"
            )

    def digest(self, *, masks: bool) -> str:
        """Hex digest of what the set says and of the sizes of its images; the place is left out.

        Args:
            masks: whether masks count, which measure but are never learnt from: by their contents.
        """
        state = hashlib.sha256(json.dumps(self.classes).encode())
        for sample in self.samples:
            mask = sample.mask.fingerprint() if masks and sample.mask else None
            line = [sample.name, sample.labels, sample.splits, sample.source, mask]
            if masks and sample.instances:
                line.append(sample.instances.fingerprint())
            state.update(json.dumps((*line, num_bytes(sample.image_path))).encode())
        return state.hexdigest()


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most so many of a list, evenly over its length, so that sources and classes mix."""
    return list(items[:: max(1, len(items) // count)][:count])


def content_digest(path: Path) -> str:
    """Hex digest of the bytes of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        state = path.stat()
        return _content_digest(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}") from None


@lru_cache(maxsize=65536)
def _content_digest(path: Path, num_bytes: int, changed_ns: int) -> str:
    """Read once in a process while the file is as long and as old: every stage asks for it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def num_bytes(path: Path) -> int:
    """Size of a file.

    Raises:
        DataError: it cannot be looked at.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}") from None
