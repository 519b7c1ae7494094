"""Every colour mode, depth and orientation becomes the RGB picture that a viewer shows."""

import errno
import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from wsss.errors import ArtifactError, DataError, ShapeError
from wsss.runtime.io.files import atomic_write_bytes
from wsss.runtime.io.image_io import (
    decode_image,
    encode_grey,
    encode_label_map,
    image_size,
    read_image,
    read_label_map,
    write_label_map,
)
from wsss.runtime.io.palette import IGNORE_INDEX, voc_palette


def smooth_picture(height: int = 37, width: int = 52) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    planes = (rows * 5 % 256, columns * 4 % 256, (rows + columns) * 2 % 256)
    return np.stack(planes, -1).astype(np.uint8)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def test_palette_starts_as_published_and_holds_no_colour_twice() -> None:
    palette = voc_palette()
    published = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)]
    assert [tuple(row) for row in palette[:6].tolist()] == published
    assert tuple(palette[20].tolist()) == (0, 64, 128)
    assert tuple(palette[IGNORE_INDEX].tolist()) == (224, 224, 192)
    assert len({tuple(row) for row in palette.tolist()}) == 256


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(image_format: str) -> None:
    picture = smooth_picture()
    data = encoded(Image.fromarray(picture), image_format)
    assert np.array_equal(decode_image(data, "a"), picture)


MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "JPEG": ["1", "L", "RGB", "CMYK"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"],
    "GIF": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "WEBP": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
}


@pytest.mark.parametrize(
    ("image_format", "mode"), [(key, mode) for key, modes in MODES.items() for mode in modes]
)
def test_every_mode_decodes_to_its_colours(image_format: str, mode: str) -> None:
    data = encoded(Image.fromarray(smooth_picture()).convert(mode), image_format)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    found = decode_image(data, "a")
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    # Decoders of JPEG, WebP and CMYK differ by rounding; a wrong mode is off by tens.
    assert np.abs(found - expected).mean() < 3


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_not_clipped(suffix: str, channels: int) -> None:
    ramp = np.linspace(0, 65535, 40 * 30).reshape(40, 30).astype(np.uint16)
    stored = ramp if channels == 1 else np.stack([ramp] * 3, -1)
    data = cv2.imencode(suffix, stored)[1].tobytes()
    found = decode_image(data, "a")
    assert np.abs(found[..., 0].astype(int) - ramp // 257).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_and_told_by_the_header(
    tmp_path: Path, orientation: int, image_format: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(smooth_picture())
    path = tmp_path / "a"
    path.write_bytes(encoded(image, image_format, exif=exif))
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB")).astype(int)
    found = read_image(path)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 3
    assert image_size(path) == found.shape[:2]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", [6, 7])
def test_turned_tiff_in_every_mode(mode: str, orientation: int) -> None:
    """OpenCV's TIFF decoder turns pictures by itself; it must do so on each of its paths."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    if mode == "I;16":
        image = Image.fromarray((smooth_picture()[..., 2].astype(np.uint16)) << 8)
    else:
        image = Image.fromarray(smooth_picture()).convert(mode)
    found = decode_image(encoded(image, "TIFF", exif=exif), "a")
    upright = decode_image(encoded(image, "TIFF"), "a")
    turned = np.rot90(upright, -1) if orientation == 6 else np.rot90(upright, 2).swapaxes(0, 1)
    assert np.array_equal(found, turned)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_of_an_animation(image_format: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
    red, _, blue = decode_image(data, "a").mean(axis=(0, 1))
    assert red > 240 and blue < 15


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_one_pixel(image_format: str) -> None:
    data = encoded(Image.new("RGB", (1, 1), (200, 100, 50)), image_format)
    assert decode_image(data, "a").shape == (1, 1, 3)


@pytest.mark.parametrize("name", ["größe und maß.png", "a" * 200 + ".png", "line\nbreak.png"])
def test_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(encoded(Image.new("RGB", (3, 2)), "PNG"))
    assert read_image(tmp_path / name).shape == (2, 3, 3)


def test_name_that_is_no_utf8(tmp_path: Path) -> None:
    path = os.path.join(os.fspath(tmp_path), os.fsdecode(b"\xff\xfe.png"))
    try:
        Path(path).write_bytes(encoded(Image.new("RGB", (3, 2)), "PNG"))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert read_image(path).shape == (2, 3, 3)
    Path(path).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        read_image(path)
    str(caught.value).encode()  # printable


def test_a_user_limit_of_opencv_is_kept() -> None:
    code = "import os, wsss.runtime.io.image_io; print(os.environ['OPENCV_IO_MAX_IMAGE_PIXELS'])"
    environment = dict(os.environ, OPENCV_IO_MAX_IMAGE_PIXELS="12345")
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "12345"


def size_in_a_process(path: Path, limit: int) -> str:
    code = f"""
from wsss.errors import DataError
from wsss.runtime.io.image_io import image_size
try:
    print(image_size({os.fspath(path)!r}, max_pixels=400_000_000))
except DataError as error:
    print(error)
"""
    environment = dict(os.environ, OPENCV_IO_MAX_IMAGE_PIXELS=str(limit))
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_a_process_that_is_started_for_huge_images_takes_them(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    data = bytearray(encoded(Image.new("L", (3, 2)), "PNG"))
    data[16:24] = struct.pack(">II", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    assert size_in_a_process(path, 400_000_000) == "(20000, 20000)"
    assert "has more than 178956970 pixels" in size_in_a_process(path, 178_956_970)
    assert "has more than 300000000 pixels" in size_in_a_process(path, 300_000_000)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 7), (1, 300)])
def test_label_map_round_trip(tmp_path: Path, shape: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "new" / "folder" / "a.png"
    write_label_map(path, labels)
    first = path.read_bytes()
    assert np.array_equal(read_label_map(path), labels)
    write_label_map(path, labels)
    assert path.read_bytes() == first
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.getpalette() == voc_palette().ravel().tolist()
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]


def test_encoded_label_map_is_what_is_written(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    write_label_map(tmp_path / "a.png", labels)
    assert (tmp_path / "a.png").read_bytes() == encode_label_map(labels)


def test_encoded_maps_hold_palette_and_text() -> None:
    labels = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    text = {"wsss": '{"a":1}', "other": "b"}
    for data, mode in (
        (encode_label_map(labels, palette, text), "P"),
        (encode_grey(labels, text), "L"),
    ):
        assert data.count(b"tEXt") == 2 and b"zTXt" not in data and b"tIME" not in data
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == mode and image.text == text
            assert np.array_equal(np.array(image), labels)
            if mode == "P":
                assert image.getpalette() == palette.ravel().tolist()


@pytest.mark.parametrize("encode", [encode_label_map, encode_grey])
def test_maps_that_cannot_be_encoded(encode: Callable[[np.ndarray], bytes]) -> None:
    for values in (np.zeros((2, 2)), np.zeros((0, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)):
        with pytest.raises(ShapeError, match="of uint8"):
            encode(values)


def test_label_map_from_grey_and_colour(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2], [20, 255, 3]], np.uint8)
    path = tmp_path / "a.png"
    colours = voc_palette()[labels]
    opaque = np.concatenate([colours, np.full((2, 3, 1), 255, np.uint8)], -1)
    for image in (
        Image.fromarray(labels),
        Image.fromarray(labels.astype(np.uint16)),
        Image.fromarray(colours),
        Image.fromarray(opaque),
    ):
        image.save(path)
        assert np.array_equal(read_label_map(path), labels), image.mode


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_label_map_of_few_bits_keeps_its_values(tmp_path: Path, bits: int) -> None:
    labels = (np.arange(24).reshape(4, 6) % 2**bits).astype(np.uint8)
    for grey in (True, False):
        path = tmp_path / f"{grey}.png"
        path.write_bytes(few_bit_png(labels, bits, grey))
        assert np.array_equal(read_label_map(path), labels), grey


def few_bit_png(labels: np.ndarray, bits: int, grey: bool) -> bytes:
    """Written chunk by chunk, because Pillow writes no grey of 2 or 4 bits."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    height, width = labels.shape
    header = struct.pack(">IIBBBBB", width, height, bits, 0 if grey else 3, 0, 0, 0)
    rows = b""
    for row in labels:
        digits = "".join(format(value, f"0{bits}b") for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big")
    colours = b"" if grey else chunk(b"PLTE", voc_palette()[: 2**bits].tobytes())
    body = chunk(b"IHDR", header) + colours + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def test_label_maps_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), (1, 2, 3)).save(path)
    with pytest.raises(DataError, match=r"colour \(1, 2, 3\)"):
        read_label_map(path)
    Image.fromarray(np.full((2, 2), 256, np.uint16)).save(path)
    with pytest.raises(DataError, match=r"0\.\.255"):
        read_label_map(path)
    Image.new("L", (4, 4)).save(path, "JPEG")
    with pytest.raises(DataError, match="expected PNG"):
        read_label_map(path)
    for labels in (np.zeros((2, 2), np.int64), np.zeros((0, 3), np.uint8), np.zeros(3, np.uint8)):
        with pytest.raises(ShapeError, match="label map"):
            write_label_map(path, labels)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    path = tmp_path / "a.bin"
    atomic_write_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ArtifactError, match=os.strerror(code)) as caught:
        atomic_write_bytes(path, b"new")
    monkeypatch.undo()
    assert "a.bin" in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "folder", tmp_path / ("n" * 300)):
        with pytest.raises(ArtifactError, match="cannot write"):
            atomic_write_bytes(path, b"x")
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "folder"}


def test_longest_name_and_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    atomic_write_bytes(path, b"x")
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
