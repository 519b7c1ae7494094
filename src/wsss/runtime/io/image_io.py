"""Images and label maps in and out; no path ever reaches a C library, no file is trusted.

An image is what a viewer shows: its EXIF orientation is applied, transparency is dropped, an
animation is its first frame. Label maps align with that displayed image.
"""

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

PIXEL_LIMIT_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"
"""OpenCV reads its own limit from the environment once, at import; ours is the same one."""
USUAL_PIXEL_LIMIT = 178_956_970
"""Twice Pillow's threshold, where Pillow refuses by itself."""
LARGEST_MAX_PIXELS = 1 << 29
"""At 3 bytes a pixel, what C libraries still count in an int."""
os.environ.setdefault(PIXEL_LIMIT_VARIABLE, str(USUAL_PIXEL_LIMIT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from ...errors import DataError, ShapeError  # noqa: E402
from .files import (  # noqa: E402
    BadImage,
    atomic_write_bytes,
    open_regular,
    read_file,
)
from .palette import voc_palette  # noqa: E402

# What is wrong with an image is said once, by our exception, not by the decoder on stderr.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

DEFAULT_MAX_PIXELS = 100_000_000


# A suffix as in 400MB is OpenCV's own affair: then the usual limit is ours.
_wanted = os.environ[PIXEL_LIMIT_VARIABLE]
PIXEL_LIMIT = min(int(_wanted), LARGEST_MAX_PIXELS) if _wanted.isdecimal() else USUAL_PIXEL_LIMIT
"""Largest image that this process can decode; a process that needs more is started with more."""
if PIXEL_LIMIT > USUAL_PIXEL_LIMIT:
    Image.MAX_IMAGE_PIXELS = -(-PIXEL_LIMIT // 2)  # Pillow refuses above twice this
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
_ORIENTATION_TAG = 0x0112
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
# Two letters, as BMP and PPM have, are the start of many a text.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", *_TIFF_SIGNATURES)
# Pillow reports oddities of a header as warnings, and warning filters belong to the whole process.
_header_lock = threading.Lock()


@dataclass(frozen=True)
class _Header:
    format: str
    mode: str
    stored_size: tuple[int, int]
    orientation: int

    @property
    def displayed_size(self) -> tuple[int, int]:
        height, width = self.stored_size
        return (width, height) if self.orientation >= 5 else (height, width)


def read_image(
    path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read an image file as RGB pixels, as a viewer shows them.

    Args:
        path: JPEG, PNG, WebP, TIFF, BMP, GIF or PPM file with 1, 8 or 16 bits per channel. 16 bits
            are scaled to 8, transparency is dropped, and of an animation the first frame is read.
        max_pixels: images with more pixels are refused before they are decoded.

    Returns:
        (H, W, 3) uint8, RGB in 0..255, with the EXIF orientation applied.

    Raises:
        DataError: the file is missing, empty, truncated, damaged, not an image, or too large.
    """
    name = os.fspath(path)
    return decode_image(
        read_file(name, max_bytes=byte_limit(max_pixels)), name, max_pixels=max_pixels
    )


def decode_image(
    data: bytes, name: str, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> NDArray[np.uint8]:
    """The encoded bytes of an image as RGB pixels, as a viewer shows them.

    Args:
        data: JPEG, PNG, WebP, TIFF, BMP, GIF or PPM of 1, 8 or 16 bits a channel, in any colour
            mode (grey, palette, CMYK, with alpha); 16 bits are scaled to 8, alpha is dropped, the
            first frame is taken.
        name: what errors call the image.
        max_pixels: refused above, before decoding; `PIXEL_LIMIT` counts as well.

    Returns:
        (H, W, 3) uint8 RGB, EXIF orientation applied.

    Raises:
        BadImage: empty, truncated, damaged, no image, too many pixels, an unsupported depth, or
        too little memory.
    """
    header = _check_header(io.BytesIO(data), len(data), name, max_pixels)
    _check_complete(data, header.format, name)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            height, width = header.stored_size
            raise BadImage(
                "out-of-memory",
                f"image {name!r} of {height} x {width} does not fit into memory: make it smaller",
            ) from error
        decoded = None
    if decoded is None or decoded.dtype != np.uint8:
        raise _damaged(name)
    # Under the same name: two copies of a huge image are enough.
    decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    pixels = decoded.astype(np.uint8, copy=False)
    if header.format != "TIFF":  # whose decoder turns the picture whatever the flag says
        pixels = _apply_orientation(pixels, header.orientation)
    if pixels.shape != (*header.displayed_size, 3):
        raise _damaged(name)
    return np.ascontiguousarray(pixels)


def image_size(
    path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[int, int]:
    """(height, width) that `read_image` would return, from the header alone.

    Raises:
        DataError: the header is not that of an image which `read_image` takes.
    """
    name = os.fspath(path)
    with open_regular(name) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        return _check_header(file, num_bytes, name, max_pixels).displayed_size


def header_size(data: bytes, name: str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """(height, width) that `decode_image` would return, from the header alone.

    Raises:
        DataError: see `image_size`.
    """
    return _check_header(io.BytesIO(data), len(data), name, max_pixels).displayed_size


def read_label_map(
    path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> NDArray[np.uint8]:
    """A label map as indices, never resized.

    Args:
        path: PNG with a palette (its indices count, its colours do not), grey PNG (its values
            count), or colour PNG made only of VOC palette colours.
        max_pixels: refused above.

    Returns:
        (H, W) uint8 indices.

    Raises:
        DataError: not a PNG, damaged, a colour outside the VOC palette, or an index above 255.
    """
    name = os.fspath(path)
    data = read_file(name, max_bytes=byte_limit(max_pixels))
    return decode_label_map(data, name, max_pixels=max_pixels)


def decode_label_map(
    data: bytes, name: str, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> NDArray[np.uint8]:
    """As `read_label_map`, for a file's content; `name` stands in errors."""
    return label_indices(decode_png(data, name, max_pixels=max_pixels), name)


@dataclass(frozen=True)
class StoredPng:
    """A PNG as it is stored, not as it looks.

    Attributes:
        pixels: (H, W) or (H, W, channels): indices of a palette, or values.
        mode: Pillow's name for what they are.
        bit_depth: of a stored value.
        text: by keyword what its text chunks say.
    """

    pixels: NDArray[Any]
    mode: str
    bit_depth: int
    text: Mapping[str, str]


def decode_png(data: bytes, name: str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> StoredPng:
    """The content of a PNG file that holds labels; `name` stands in errors.

    Raises:
        DataError: not a PNG, damaged, or too many pixels.
    """
    header = _check_header(io.BytesIO(data), len(data), name, max_pixels)
    if header.format != "PNG":
        raise DataError(f"label map {name!r} is {header.format}, expected PNG: convert it to PNG")
    _check_complete(data, header.format, name)
    try:
        with _header_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("PNG",))
        assert isinstance(image, PngImagePlugin.PngImageFile)
        return StoredPng(np.asarray(image), image.mode, data[24], dict(image.text))
    except Exception as error:
        raise _damaged(name) from error


def label_indices(stored: StoredPng, name: str) -> NDArray[np.uint8]:
    """(H, W) uint8 indices of a label map; see `read_label_map`.

    Raises:
        DataError: a colour outside the VOC palette, or an index above 255.
    """
    pixels, mode = stored.pixels, stored.mode
    if mode == "L" and stored.bit_depth < 8:
        # Pillow stretches grey of 2 and 4 bits to 0..255; indices are the values as stored.
        return np.asarray(pixels // (255 // (2**stored.bit_depth - 1)), np.uint8)
    if mode in ("P", "L", "1") or (mode.startswith("I") and pixels.max() <= 255):
        return np.asarray(pixels, np.uint8)
    if mode == "RGB" or (mode == "RGBA" and (pixels[..., 3] == 255).all()):
        return _indices_of_colours(pixels[..., :3], name)
    raise DataError(
        f"label map {name!r} has mode {mode}, expected indices 0..255 in a palette or grey PNG"
    )


def write_label_map(path: str | os.PathLike[str], labels: NDArray[np.uint8]) -> None:
    """Write a label map as a PNG file with the colour palette of VOC.

    The file is replaced atomically, and equal labels give equal bytes.

    Args:
        path: file to write; missing folders are created.
        labels: (H, W) uint8: 0 background, class index + 1, 255 ignore.

    Raises:
        ShapeError: `labels` is not a non-empty (H, W) uint8 array.
        ArtifactError: the file cannot be written; an existing one is left unchanged.
    """
    atomic_write_bytes(path, encode_label_map(labels))


def encode_label_map(
    labels: NDArray[np.uint8],
    palette: NDArray[np.uint8] | None = None,
    text: Mapping[str, str] | None = None,
) -> bytes:
    """Indices as the bytes of a palette PNG; same arguments, same bytes.

    Args:
        labels: (H, W) uint8.
        palette: (256, 3) uint8 RGB by index; None: that of VOC.
        text: by keyword what tEXt chunks say, in Latin-1.

    Raises:
        ShapeError: not a non-empty (H, W) uint8 array.
    """
    image = _one_plane(labels, "a label map")
    image.putpalette((voc_palette() if palette is None else palette).tobytes())
    # What Pillow takes for palettes by itself; said, so that another version keeps to it.
    return _encode_png(image, text, 6, zlib.Z_DEFAULT_STRATEGY)


def encode_grey(
    values: NDArray[np.uint8 | np.uint16], text: Mapping[str, str] | None = None
) -> bytes:
    """Values as the bytes of a grey PNG of 8 or 16 bits, by their type; see `encode_label_map`."""
    # Looking for runs alone gives the smallest files of smooth values, in a fifth of the time.
    plane = _one_plane(values, "a grey picture", (np.uint8, np.uint16))
    return _encode_png(plane, text, 1, zlib.Z_RLE)


def _one_plane(
    values: NDArray[Any], what: str, types: tuple[type[np.generic], ...] = (np.uint8,)
) -> Image.Image:
    if values.ndim != 2 or values.size == 0 or values.dtype not in types:
        wanted = " or ".join(kind.__name__ for kind in types)
        raise ShapeError(
            f"{what} is {values.dtype} {values.shape}, expected non-empty (H, W) of {wanted}"
        )
    return Image.fromarray(values)


def _encode_png(
    image: Image.Image, text: Mapping[str, str] | None, level: int, strategy: int
) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    for keyword, value in (text or {}).items():
        chunks.add_text(keyword, value)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=level, compress_type=strategy, pnginfo=chunks)
    return buffer.getvalue()


def byte_limit(max_pixels: int) -> int:
    """Bytes that a file of so many pixels may have.

    Raw pixels take at most 8 bytes (4 channels of 16 bits); more is no image of that size.
    """
    return 8 * max_pixels + (64 << 20)


def _check_header(file: io.BufferedIOBase, num_bytes: int, name: str, max_pixels: int) -> _Header:
    if num_bytes == 0:
        raise BadImage("empty", f"image {name!r} is empty (0 bytes): replace it or take it out")
    header = _parse_header(file, name, max_pixels)
    height, width = header.stored_size
    if height * width > max_pixels:
        raise BadImage(
            "too-large",
            f"image {name!r} is {height} x {width}, more than {max_pixels} pixels: make it smaller",
        )
    # Only TIFF: 16-bit PPM is "I" as well.
    if header.mode == "F" or (header.mode == "I" and header.format == "TIFF"):
        raise BadImage(
            "unsupported-depth",
            f"image {name!r} has 32 bits a pixel value (mode {header.mode}), expected 8 or 16: "
            "convert it",
        )
    return header


def _parse_header(file: io.BufferedIOBase, name: str, max_pixels: int) -> _Header:
    try:
        with _header_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=_FORMATS)  # type: ignore[arg-type]
            width, height = image.size
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                # `size` may be that of the stored or of the displayed image, by version.
                width, height = int(image.tag_v2[256]), int(image.tag_v2[257])
            return _Header(
                image.format or "", image.mode, (height, width), _read_orientation(image)
            )
    except Image.DecompressionBombError as error:
        raise BadImage(
            "too-large",
            f"image {name!r} has more than {min(max_pixels, PIXEL_LIMIT)} pixels: make it smaller",
        ) from error
    except UnidentifiedImageError as error:
        raise _unidentified(file, name) from error
    except Exception as error:  # what parsers of hostile headers raise is not a closed list
        raise _damaged(name) from error


def _unidentified(file: io.BufferedIOBase, name: str) -> BadImage:
    """What is wrong with a file of which Pillow makes nothing."""
    file.seek(0)
    start = file.read(16)
    if start.startswith(_TIFF_SIGNATURES) and (form := _tiff_form(file, start)) is not None:
        return BadImage(
            "unsupported-depth",
            f"image {name!r} is a TIFF of {form} bits a pixel, expected up to 4 channels of 8 or "
            "16 bits without sign: convert it",
        )
    if start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return _damaged(name)
    return BadImage(
        "not-an-image",
        f"{name!r} is not an image that can be read, expected JPEG, PNG, WebP, TIFF, BMP, GIF "
        "or PPM of 8 or 16 bits",
    )


def _tiff_form(file: io.BufferedIOBase, start: bytes) -> str | None:
    """Bits of each channel, if the header is whole."""
    try:
        with _header_lock, warnings.catch_warnings():
            warnings.simplefilter("error")  # so does Pillow tell of a header that is cut
            tags = TiffImagePlugin.ImageFileDirectory_v2(start[:8])
            file.seek(tags.next)
            tags.load(file)  # type: ignore[arg-type]
            depths = tags[258][:8] if all(tag in tags for tag in (256, 257, 258)) else ()
            # A hostile header may have text there.
            whole = depths and all(isinstance(bits, int) for bits in depths)
            return " + ".join(map(str, depths)) if whole else None
    except Exception:  # as in `_parse_header`
        return None


def _read_orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; anything unreadable counts as upright.

    XMP is not asked, as browsers do not; nor EXIF behind a PNG's pixels, which is no header.
    """
    try:
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            value = image.tag_v2.get(_ORIENTATION_TAG, 1)
        else:
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
            value = exif.get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _apply_orientation(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    # After the transposition: which axes run backwards.
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _check_complete(data: bytes, image_format: str, name: str) -> None:
    """Finds cut files before the decoder does: OpenCV 4 returns half a picture for a cut JPEG,
    and the PNG library writes to stderr."""
    if image_format == "JPEG":
        # The end marker cannot occur inside a scan; earlier ones belong to thumbnails.
        complete = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    elif image_format == "PNG":
        complete = _png_is_whole(data)
    else:
        complete = True
    if not complete:
        raise _damaged(name)


def _png_is_whole(data: bytes) -> bool:
    view = memoryview(data)
    start = 8
    while start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        end = start + 12 + length
        if end > len(data):
            return False
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(view[start + 4 : end - 4]) != checksum:
            return False
        if data[start + 4 : start + 8] == b"IEND":
            return True
        start = end
    return False


def _indices_of_colours(colours: NDArray[Any], name: str) -> NDArray[np.uint8]:
    weights = np.array([65536, 256, 1])
    palette_codes = voc_palette().astype(np.int64) @ weights
    order = np.argsort(palette_codes)
    codes = colours.astype(np.int64) @ weights
    place = np.searchsorted(palette_codes[order], codes).clip(max=255)
    indices = order[place]
    strange = palette_codes[indices] != codes
    if strange.any():
        found = tuple(int(value) for value in colours[strange][0])
        raise DataError(
            f"label map {name!r} has the colour {found}, which is not in the VOC palette: "
            "save it as a palette or grey PNG of indices"
        )
    return np.asarray(indices, np.uint8)


def _damaged(name: str) -> BadImage:
    return BadImage(
        "truncated", f"image {name!r} is truncated or damaged: replace it or take it out"
    )
