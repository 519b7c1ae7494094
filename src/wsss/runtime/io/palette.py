"""Colours of label maps, and the index that stands for "no statement about this pixel"."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

IGNORE_INDEX = 255
"""Pixel value without a class: no loss, no metric."""


@lru_cache(maxsize=1)
def voc_palette() -> NDArray[np.uint8]:
    """Colours of PASCAL VOC label maps.

    The bits of an index are dealt out to red, green and blue in turn, from the highest bit of
    each channel downwards, so that all 256 colours differ.

    Returns:
        (256, 3) uint8 RGB, read-only; row 0 black, row 255 (224, 224, 192).

    Source: colour map of the PASCAL VOC development kit.
    """
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            taken = (index >> (3 * bit + channel)) & 1
            palette[:, channel] |= (taken << (7 - bit)).astype(np.uint8)
    palette.flags.writeable = False
    return palette
