"""Broken and hostile files end in one line that names the file; nothing else happens."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.errors import DataError
from wsss.runtime.image_io import decode_image, image_size, read_image, read_label_map

FORMATS = {
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "tiff": ("TIFF", {}),
    "tiff_lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
}


def picture_file(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image_format, options = FORMATS[kind]
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, image_format, **options)
    return buffer.getvalue()


def refusal(data: bytes) -> str:
    with pytest.raises(DataError) as caught:
        decode_image(data, "some/image.jpg")
    message = str(caught.value)
    assert "some/image.jpg" in message and "\n" not in message
    return message


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_truncated(kind: str, part: float) -> None:
    data = picture_file(kind)
    refusal(data[: int(len(data) * part)])


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "webp", "bmp", "tiff"])
def test_last_bytes_missing(kind: str) -> None:
    assert "truncated or damaged" in refusal(picture_file(kind)[:-2])


def test_truncated_behind_a_thumbnail() -> None:
    """The end marker of an embedded thumbnail must not pass for that of the picture."""
    thumbnail = picture_file("jpeg")
    exif = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    data = picture_file("jpeg")
    with_thumbnail = data[:2] + exif + data[2:]
    assert decode_image(with_thumbnail, "a").shape == (60, 80, 3)
    assert "truncated" in refusal(with_thumbnail[:-200])


def test_junk_behind_the_end_is_accepted() -> None:
    assert decode_image(picture_file("jpeg") + b"junk" * 100, "a").shape == (60, 80, 3)


def test_flipped_bytes_in_png() -> None:
    data = bytearray(picture_file("png"))
    data[len(data) // 2] ^= 0xFF
    assert "damaged" in refusal(bytes(data))


@pytest.mark.parametrize("data", [b"<html></html>" * 50, b"\0" * 1000, b"\xff\xd8\xff", b"GIF89a"])
def test_no_image(data: bytes) -> None:
    refusal(data)


def test_zero_bytes() -> None:
    assert "empty (0 bytes)" in refusal(b"")


def png_header(height: int, width: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    idat = b"IDAT" + zlib.compress(b"\0" * 100)
    data = struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + chunk + data + end


@pytest.mark.parametrize("size", [(10_001, 10_000), (20_000, 20_000), (1, 2**31 - 1), (0, 5)])
def test_too_many_pixels_by_header(size: tuple[int, int], tmp_path: Path) -> None:
    message = refusal(png_header(*size))
    if size[0]:
        assert "pixels" in message
    path = tmp_path / "a.png"
    path.write_bytes(png_header(*size))
    for read in (image_size, read_image, read_label_map):
        with pytest.raises(DataError):
            read(path)


def test_pixel_limit_is_an_option() -> None:
    data = picture_file("png")
    assert decode_image(data, "a", max_pixels=4800).shape == (60, 80, 3)
    with pytest.raises(DataError, match="60 x 80, more than 4799 pixels"):
        decode_image(data, "a", max_pixels=4799)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_unsupported_depth(dtype: type) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.ones((4, 4), dtype)).save(buffer, "TIFF")
    assert "32 bits" in refusal(buffer.getvalue())


def test_things_that_are_no_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    paths = [tmp_path / name for name in ("pipe.jpg", "folder.jpg", "loop.jpg", "absent.jpg")]
    for path in [*paths, Path("/dev/zero")]:
        for read in (read_image, image_size, read_label_map):
            with pytest.raises(DataError, match=path.name) as caught:
                read(path)
            assert "\n" not in str(caught.value)


def test_sparse_giant_file(tmp_path: Path) -> None:
    path = tmp_path / "giant.jpg"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="bytes, expected at most"):
        read_image(path)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "tiff_lzw", "bmp", "gif"])
def test_mutated_files_decode_or_are_refused(kind: str) -> None:
    original = picture_file(kind)
    generator = np.random.default_rng(7)
    for _ in range(60):
        data = bytearray(original)
        for _ in range(int(generator.integers(1, 6))):
            data[int(generator.integers(0, min(len(data), 400)))] = int(generator.integers(0, 256))
        try:
            pixels = decode_image(bytes(data), "a.x", max_pixels=1_000_000)
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert pixels.ndim == 3 and pixels.dtype == np.uint8


def test_the_decoder_itself_stays_silent(tmp_path: Path) -> None:
    for kind in FORMATS:
        data = picture_file(kind)
        (tmp_path / kind).write_bytes(data[: len(data) * 2 // 3])
    code = (
        "import sys, pathlib\n"
        "from wsss.errors import DataError\n"
        "from wsss.runtime.image_io import read_image\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    try:\n"
        "        read_image(path)\n"
        "    except DataError:\n"
        "        print('refused')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["refused"] * len(FORMATS)
    assert result.stderr == ""
