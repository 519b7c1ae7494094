"""An image of a job: where its bytes are, how they are read, and what was found in it.

All that may go wrong when it is read has a code.
"""

import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...instances.instance_map import InstanceMap
from ...io.files import BadFile, BadImage, open_regular, read_error
from ...io.image_io import DEFAULT_MAX_PIXELS, byte_limit, decode_image, header_size
from .cloud import Store, is_url


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


def read_bytes(ref: ImageRef, *, max_bytes: int = byte_limit(DEFAULT_MAX_PIXELS)) -> bytes:
    """The encoded image; never blocks on pipes and devices.

    Raises:
        BadImage: absent, no regular file, other than when the list was frozen, more than
            `max_bytes`, or unreadable.
        MissingDependencyError: its URL needs a package that is not installed.
    """
    if ref.span is not None and ref.span[1] > max_bytes:
        raise _too_large(ref, ref.span[1], max_bytes)
    try:
        return _from_url(ref, max_bytes) if is_url(ref.source) else _from_file(ref, max_bytes)
    except BadImage:
        raise
    except BadFile as error:
        raise BadImage(error.code, f"image {ref.name!r}: {error}") from error


def read_pixels(ref: ImageRef, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB; see `decode_image`.

    Raises:
        BadImage: as `read_bytes` and `decode_image`.
        MissingDependencyError: see `read_bytes`.
    """
    try:
        data = read_bytes(ref, max_bytes=byte_limit(max_pixels))
        return decode_image(data, ref.name, max_pixels=max_pixels)
    except MemoryError as error:
        raise BadImage(
            "out-of-memory", f"image {ref.name!r} does not fit into memory: make it smaller"
        ) from error


def read_size(ref: ImageRef, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """(height, width) of `read_pixels`, from the header.

    Raises:
        BadImage: see `read_pixels`.
    """
    data = read_bytes(ref, max_bytes=byte_limit(max_pixels))
    return header_size(data, ref.name, max_pixels=max_pixels)


def _from_file(ref: ImageRef, max_bytes: int) -> bytes:
    with open_regular(ref.source) as file:
        size = _unchanged_size(ref, file)
        start, length = ref.span or (0, size)
        if length > max_bytes:
            raise _too_large(ref, length, max_bytes)
        if start + length > size:
            raise _truncated(ref, max(size - start, 0), length)
        try:
            file.seek(start)
            data = file.read(length)
        except OSError as error:
            raise read_error(ref.source, error) from error
        _unchanged_size(ref, file)  # not while it was read, either
    if len(data) != length:
        raise _truncated(ref, len(data), length)
    return data


def _unchanged_size(ref: ImageRef, file: BinaryIO) -> int:
    found = os.fstat(file.fileno())
    if ref.stamp is not None and ref.stamp != (found.st_size, found.st_mtime_ns):
        raise _changed(ref)
    return found.st_size


def _from_url(ref: ImageRef, max_bytes: int) -> bytes:
    data, size = Store(ref.source).read(ref.span, max_bytes)
    if ref.span is None and size is None and len(data) <= max_bytes:
        size = len(data)
    if ref.stamp is not None and size is not None and ref.stamp[0] != size:
        raise _changed(ref)
    if len(data) > max_bytes:
        raise _too_large(ref, size if size is not None else len(data), max_bytes)
    if ref.span is not None and len(data) != ref.span[1]:
        raise _truncated(ref, len(data), ref.span[1])
    return data


def _truncated(ref: ImageRef, num_bytes: int, expected: int) -> BadImage:
    return BadImage(
        "truncated",
        f"image {ref.name!r} has {num_bytes} bytes in {ref.source!r}, expected {expected}: "
        "make that file again",
    )


def _too_large(ref: ImageRef, num_bytes: int, max_bytes: int) -> BadImage:
    return BadImage(
        "too-large",
        f"image {ref.name!r} has {num_bytes} bytes, expected at most {max_bytes}: make it smaller",
    )


def _changed(ref: ImageRef) -> BadImage:
    return BadImage(
        "changed",
        f"image {ref.name!r}: {ref.source!r} is not as it was when the job began: label it in a "
        "job of its own",
    )
