"""The run-length bytes in which Label Studio keeps what a brush has painted."""

import numpy as np
from numpy.typing import NDArray

from .rle import Region

_CHANNELS = 4
_VALUE_BITS = 8
_LENGTH_BITS = np.array([3, 4, 8, 16])
_LONGEST = 1 << 16


def brush_bytes(region: Region) -> list[int]:
    """A region as Label Studio's brush: RGBA pixels, 255 inside and 0 outside, run-length coded.

    A head of 53 bits (number of values, bits of a value, the four sizes of a length), then for
    each run: one bit 1, two bits that choose the size, the length less 1, the value.

    Args:
        region: runs along rows.

    Source: `encode_rle` of label-studio-sdk (same bytes), after rle-pack of @thi.ng/umbrella.
    """
    counts = region.counts
    values = np.arange(counts.size) % 2 * 255
    lengths, values = counts[counts > 0] * _CHANNELS, values[counts > 0]
    # A length takes at most 16 bits; the longest pieces of a run come first.
    pieces = (lengths - 1) // _LONGEST + 1
    last = np.cumsum(pieces) - 1
    values = np.repeat(values, pieces)
    rests = lengths - (pieces - 1) * _LONGEST
    lengths = np.full(values.size, _LONGEST)
    lengths[last] = rests
    sizes = np.searchsorted(1 << _LENGTH_BITS, lengths)
    # The last piece of a cut run keeps the size of the others, as in the source.
    sizes[last[pieces > 1]] = len(_LENGTH_BITS) - 1
    widths = 3 + _LENGTH_BITS[sizes] + _VALUE_BITS
    codes = (
        (1 << (widths - 1))
        | (sizes << (widths - 3))
        | ((lengths - 1) << _VALUE_BITS)
        | values
    )  # fmt: skip
    height, width = region.shape
    head = np.concatenate(
        [
            _bits(np.array([height * width * _CHANNELS]), np.array([32])),
            _bits(np.array([_VALUE_BITS - 1]), np.array([5])),
            _bits(_LENGTH_BITS - 1, np.full(_LENGTH_BITS.size, 4)),
        ]
    )
    bits = np.concatenate([head, _bits(codes, widths)])
    # As the source does, a whole byte of zeros follows bits that end with a byte.
    packed: list[int] = np.packbits(np.append(bits, np.zeros(8 - bits.size % 8, bool))).tolist()
    return packed


def _bits(numbers: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The lowest bits of each number, highest first, one number after the other."""
    places = np.arange(int(widths.max()) - 1, -1, -1)
    bits = (numbers[:, None] >> places) & 1
    return np.asarray(bits[places < widths[:, None]], bool)
