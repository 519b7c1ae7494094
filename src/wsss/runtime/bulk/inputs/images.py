"""An image on its way through a job: where its bytes are, and what was found in it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...instances.instance_map import InstanceMap


@dataclass(frozen=True)
class ImageRef:
    """An image of the frozen list.

    Attributes:
        name: relative to the folder, tar or bucket that was given, with extension, parts separated
            by `/`; bytes that are not UTF-8 stand as surrogate escapes (`os.fsdecode`).
        source: absolute path, or fsspec URL, of the file that holds the bytes.
        output: `name` made fit for outputs, without a suffix: writers add their own. No two images
            of a job share one, nor a folder's name, not even where case does not count.
        span: first byte and number of bytes inside of `source`, for members of a tar.
        stamp: size in bytes and time of change in ns of `source` when the list was frozen; None
            where the file system does not tell. An image that differs later is not labelled.
        labels: indices of the classes in it, ascending; None: the classifier finds them.
    """

    name: str
    source: str
    output: str
    span: tuple[int, int] | None = None
    stamp: tuple[int, int] | None = None
    labels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class LabelledImage:
    """What writers get of one image.

    Attributes:
        index: place in the job's list, from 0.
        pixels: (H, W, 3) uint8 RGB.
        label: (H, W) uint8: 0 background, class index + 1, 255 no statement.
        confidence: (H, W) float32 in [0, 1]; None if no writer needs it.
        scores: (C + 1, h, w) float32, plane 0 the background; None if no writer needs it.
        instances: none of them has a pixel of 255 in `label`; None where the model has none.
    """

    ref: ImageRef
    index: int
    pixels: NDArray[np.uint8]
    label: NDArray[np.uint8]
    confidence: NDArray[np.float32] | None = None
    scores: NDArray[np.float32] | None = None
    instances: InstanceMap | None = None
