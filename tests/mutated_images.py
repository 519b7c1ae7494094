"""Images of every format, generated, and then damaged in ways that get past the first checks."""

import io
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "GIF": "gif", "BMP": "bmp"}
_HEADER = 160
"""Bytes at the start in which the formats keep sizes, depths and offsets."""
_TELLING = (0, 1, 2, 3, 7, 8, 16, 32, 255, 256, 4095, 9_999, 32_767, 65_535, 0x7FFFFFFF, 0xFFFFFFFF)
"""Numbers at which arithmetic of sizes goes wrong."""


def seeds() -> list[tuple[str, bytes]]:
    """Whole images of 1 x 1 to 45 x 61: (format, content), the same each time."""
    found = []
    for number, size in enumerate(((24, 33), (45, 61), (1, 1))):
        rng = np.random.default_rng(number)
        noise = rng.integers(0, 256, (*size, 4), dtype=np.uint8)
        smooth = cv2.blur(noise, (9, 9))
        for pixels in (noise, smooth):
            found += _encoded(pixels)
    return found


def _encoded(pixels: NDArray[np.uint8]) -> Iterator[tuple[str, bytes]]:
    colour = Image.fromarray(pixels[..., :3])
    grey, alpha = Image.fromarray(pixels[..., 0]), Image.fromarray(pixels)
    palette, two = colour.quantize(16), grey.convert("1")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned
    later = [Image.fromarray(pixels[::-1, :, :3]).quantize(8)]

    def saved(image: Image.Image, name: str, **options: object) -> tuple[str, bytes]:
        buffer = io.BytesIO()
        image.save(buffer, name, **options)  # type: ignore[arg-type]
        return name, buffer.getvalue()

    for image in (colour, grey, colour.convert("CMYK")):
        yield saved(image, "JPEG")
    yield saved(colour, "JPEG", progressive=True, restart_marker_blocks=1)
    yield saved(colour, "JPEG", exif=exif, subsampling=2, optimize=True)
    for image in (colour, grey, alpha, palette, two):
        for name in ("PNG", "TIFF"):
            yield saved(image, name)
    for image in (colour, grey, palette, two):
        yield saved(image, "BMP")
    yield saved(colour, "PNG", exif=exif)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield saved(colour, "TIFF", compression=compression)
    yield saved(two, "TIFF", compression="group4")
    for options in ({"lossless": True}, {"quality": 40}, {"quality": 80, "exif": exif}):
        yield saved(colour, "WEBP", **options)
    yield saved(alpha, "WEBP")
    yield saved(palette.convert("RGB"), "WEBP", save_all=True, append_images=later)
    yield saved(palette, "GIF")
    yield saved(grey, "GIF", interlace=1)
    yield saved(palette, "GIF", save_all=True, append_images=later, transparency=3, loop=0)
    deep = pixels[..., :3].astype(np.uint16) * 257
    for name, suffix in (("PNG", ".png"), ("TIFF", ".tiff")):
        yield name, cv2.imencode(suffix, deep)[1].tobytes()


def mutated(chance: random.Random, images: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """One of the images, damaged: (format, content)."""
    name, data = chance.choice(images)
    akin = [other for kind, other in images if kind == name or chance.random() < 0.1]
    other = chance.choice(akin)
    change = chance.choice((_flip, _cut, _edit, _edit, _splice, _shift))
    content = change(chance, bytearray(data), other)
    if name == "PNG" and chance.random() < 0.7:
        _repair(content)
    return name, bytes(content)


def _flip(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    """Some bits."""
    for _ in range(chance.choice((1, 2, 4, 16, 64))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def _cut(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    """The end; at times with zeros in its place."""
    kept = chance.randrange(len(data))
    return data[:kept] + bytes(chance.choice((0, 0, len(data) - kept)))


def _edit(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    """Numbers of the header."""
    for _ in range(chance.randrange(1, 4)):
        width, order = chance.choice((1, 2, 4)), chance.choice(("big", "little"))
        number = chance.choice((*_TELLING, chance.randrange(1 << 14))) % (1 << 8 * width)
        # The directory of a TIFF may stand at its end.
        from_end = data[:2] in (b"II", b"MM") and chance.random() < 0.5
        place = chance.randrange(min(_HEADER, len(data)))
        place = len(data) - 1 - place if from_end else place
        data[place : place + width] = number.to_bytes(width, order)
    return data


def _splice(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    """The start of one image and the end of another."""
    end = chance.randrange(len(data))
    start = chance.choice((min(end, len(other)), chance.randrange(len(other))))
    return data[:end] + other[start:]


def _shift(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    """A block doubled, removed, or overwritten by noise."""
    start = chance.randrange(len(data))
    block = data[start : start + chance.randrange(1, 200)]
    middle = chance.choice((block * 2, bytearray(), bytearray(chance.randbytes(len(block)))))
    return data[:start] + middle + data[start + len(block) :]


def _repair(data: bytearray) -> None:
    """The checksums of a PNG's chunks, as far as its lengths make sense: else no decoder sees
    what is wrong with the content."""
    start = 8
    while start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        end = start + 12 + length
        if end > len(data):
            return
        struct.pack_into(">I", data, end - 4, zlib.crc32(data[start + 4 : end - 4]))
        start = end


def write_mutated(folder: Path, count: int, seed: int) -> Path:
    """Damaged images in folders of a thousand: `03/003141.tif`; the same for the same seed."""
    chance, whole = random.Random(seed), seeds()
    for number in range(count):
        name, data = mutated(chance, whole)
        path = folder / f"{number // 1000:02}" / f"{number:06}.{SUFFIXES[name]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder
