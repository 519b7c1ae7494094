"""Broken and hostile files end in one line that names the file; nothing else happens."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from wsss.errors import DataError
from wsss.runtime.io.files import BadFile, BadImage
from wsss.runtime.io.image_io import decode_image, image_size, read_image, read_label_map

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


def refusal(data: bytes, code: str) -> str:
    """The message; `code`: of the fixed list that records and `failures.csv` use."""
    with pytest.raises(BadImage) as caught:
        decode_image(data, "some/image.jpg")
    message = str(caught.value)
    assert "some/image.jpg" in message and "\n" not in message
    assert caught.value.code == code
    return message


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_truncated(kind: str, part: float) -> None:
    data = picture_file(kind)
    refusal(data[: int(len(data) * part)], "truncated")


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "webp", "bmp", "tiff"])
def test_last_bytes_missing(kind: str) -> None:
    assert "truncated or damaged" in refusal(picture_file(kind)[:-2], "truncated")


def test_truncated_behind_a_thumbnail() -> None:
    """The end marker of an embedded thumbnail must not pass for that of the picture."""
    thumbnail = picture_file("jpeg")
    exif = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    data = picture_file("jpeg")
    with_thumbnail = data[:2] + exif + data[2:]
    assert decode_image(with_thumbnail, "a").shape == (60, 80, 3)
    assert "truncated" in refusal(with_thumbnail[:-200], "truncated")


def test_junk_behind_the_end_is_accepted() -> None:
    assert decode_image(picture_file("jpeg") + b"junk" * 100, "a").shape == (60, 80, 3)


def test_flipped_bytes_in_png() -> None:
    data = bytearray(picture_file("png"))
    data[len(data) // 2] ^= 0xFF
    assert "damaged" in refusal(bytes(data), "truncated")


@pytest.mark.parametrize("kind", FORMATS)
def test_the_first_bytes_alone(kind: str) -> None:
    """A signature of two letters is no proof of an image; the others are."""
    weak = {"bmp": 2, "webp": 8}.get(kind, 0)
    data = picture_file(kind)
    if weak:
        refusal(data[:weak], "not-an-image")
    for length in (12, 20, 30):
        code = "not-an-image" if kind == "bmp" and length < 18 else "truncated"
        refusal(data[:length], code)


@pytest.mark.parametrize(
    "data",
    [
        b"<html></html>" * 50,
        b"\0" * 1000,
        b"\xff" * 1000,
        b"\n",
        b"%PDF-1.4\n",
        b"8BPS\0\1",
        b"PK\3\4" + b"\0" * 100,
        b"BM",
        b"PNG, but not quite",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"\0\0\0\x20ftypheic" + b"\0" * 100,
        b"\0\0\0\x20ftypavif" + b"\0" * 100,
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"#?RADIANCE\n",
        b"PF\n4 4\n-1.0\n" + b"\0" * 192,
        b'{"version": "5.0"}',
    ],
)
def test_no_image(data: bytes) -> None:
    refusal(data, "not-an-image")


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xd9",
        b"GIF89a",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0\x08\0\0\0",
        b"MM\0*\0\0\0\x08\0\0",
        b"RIFF\x24\0\0\0WEBPVP8 ",
        b"P6\n4 4\n255\nab",
        b"P5\n4 4",
    ],
)
def test_images_of_which_little_is_left(data: bytes) -> None:
    refusal(data, "truncated")


def test_zero_bytes() -> None:
    assert "empty (0 bytes)" in refusal(b"", "empty")


def png_header(height: int, width: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    idat = b"IDAT" + zlib.compress(b"\0" * 100)
    data = struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + chunk + data + end


@pytest.mark.parametrize("size", [(10_001, 10_000), (20_000, 20_000), (1, 2**31 - 1), (0, 5)])
def test_too_many_pixels_by_header(size: tuple[int, int], tmp_path: Path) -> None:
    message = refusal(png_header(*size), "too-large" if size[0] else "truncated")
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
    assert "32 bits" in refusal(buffer.getvalue(), "unsupported-depth")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int16])
@pytest.mark.parametrize("channels", [3, 4])
def test_unsupported_depth_of_colours(dtype: type, channels: int) -> None:
    data = cv2.imencode(".tiff", np.ones((4, 5, channels), dtype))[1].tobytes()
    bits = " + ".join([str(np.dtype(dtype).itemsize * 8)] * channels)
    assert f"TIFF of {bits} bits" in refusal(data, "unsupported-depth")
    refusal(data[:60], "truncated")


def test_a_depth_that_is_text() -> None:
    """Found by `benchmarks/bulk_fuzz_images.py`: its control characters came into the message."""
    data = bytearray(cv2.imencode(".tiff", np.ones((4, 5, 3), np.float32))[1].tobytes())
    (directory,) = struct.unpack_from("<I", data, 4)
    place = data.index(struct.pack("<HH", 258, 3), directory)
    struct.pack_into("<H", data, place + 2, 2)  # of ASCII
    assert refusal(bytes(data), "truncated").isprintable()


def test_ppm_header_of_a_giant() -> None:
    refusal(b"P6\n1000000 1000000\n255\n", "too-large")


def test_things_that_are_no_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    codes = {
        tmp_path / "pipe.jpg": "not-a-file",
        tmp_path / "folder.jpg": "not-a-file",
        tmp_path / "loop.jpg": "bad-name",
        tmp_path / "absent.jpg": "missing",
        Path("/dev/zero"): "not-a-file",
    }
    for path, code in codes.items():
        for read in (read_image, image_size, read_label_map):
            with pytest.raises(BadFile, match=path.name) as caught:
                read(path)
            assert "\n" not in str(caught.value)
            assert caught.value.code == code


def test_sparse_giant_file(tmp_path: Path) -> None:
    path = tmp_path / "giant.jpg"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadFile, match="bytes, expected at most") as caught:
        read_image(path)
    assert caught.value.code == "too-large"


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
        except BadImage as error:
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
        "from wsss.runtime.io.image_io import read_image\n"
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
