"""Triton Python model: JPEG or PNG bytes -> one uint8 RGB image. Copied into a repository as it is.

It runs inside of the server, imports nothing of wsss, and takes OpenCV or else Pillow for the
pixels. Width and height are read from the header before anything is decoded, so that a small file
cannot ask for much memory. One bad image fails its own request and no other.
"""

import io
import json
import os
import struct
from typing import Any

# OpenCV reads its limit once, at import; ours, from the configuration, is at most this.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "178956970")

import numpy as np
import triton_python_backend_utils as pb_utils

MAX_BYTES = 64 * 2**20
PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Second bytes of the markers whose segment holds height and width."""
JPEG_BARE = frozenset(range(0xD0, 0xDA)) | {0x01}
"""Of the markers without a length."""


class ImageError(Exception):
    """What is wrong with the bytes of one request."""


class TritonPythonModel:
    """See Triton's Python backend for when these methods are called."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters and choose a decoder."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.max_pixels = int(parameters["max_pixels"]["string_value"])
        self.is_planar = parameters["layout"]["string_value"] == "nchw"
        self.decode = choose_decoder()

    def execute(self, requests: list[Any]) -> list[Any]:
        """An image, or an error, for each request."""
        return [self.respond(request) for request in requests]

    def respond(self, request: Any) -> Any:
        """The answer to one request."""
        try:
            encoded = pb_utils.get_input_tensor_by_name(request, "encoded").as_numpy()
            pixels = self.image(bytes(encoded.reshape(-1)[0]))
        except ImageError as error:
            fault = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=fault)
        image = pixels.transpose(2, 0, 1) if self.is_planar else pixels
        tensor = pb_utils.Tensor("image", np.ascontiguousarray(image[None]))
        return pb_utils.InferenceResponse([tensor])

    def image(self, data: bytes) -> Any:
        """(H, W, 3) uint8 RGB, turned as a viewer shows it."""
        if len(data) > MAX_BYTES:
            raise ImageError(f"image has {len(data)} bytes, expected at most {MAX_BYTES}")
        height, width = size_in_header(data)
        if not 1 <= height * width <= self.max_pixels:
            raise ImageError(
                f"image is {height} x {width}, expected 1 to {self.max_pixels} pixels: resize it"
            )
        try:
            pixels = self.decode(data)
        except Exception as error:
            raise ImageError(f"image is damaged: {' '.join(str(error).split())[:200]}") from None
        if pixels is None or pixels.dtype != np.uint8 or pixels.shape[2:] != (3,):
            raise ImageError("image is damaged or of an unsupported kind: expected JPEG or PNG")
        if sorted(pixels.shape[:2]) != sorted((height, width)):
            raise ImageError("image is damaged: its size is not that of its header")
        return pixels


def size_in_header(data: bytes) -> tuple[int, int]:
    """(height, width) as stored, of a file that goes on to its end."""
    try:
        if data.startswith(PNG_START):
            width, height = struct.unpack_from(">II", data, 16)
            is_whole = data[12:16] == b"IHDR" and data.rfind(b"IEND") > 0
        elif data.startswith(b"\xff\xd8\xff"):
            height, width = jpeg_size(data)
            # Decoders make half a picture of a cut file; only the end marker tells.
            is_whole = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
        else:
            raise ImageError("image is neither JPEG nor PNG")
    except (struct.error, IndexError):
        raise ImageError("image is cut off in its header") from None
    if not is_whole:
        raise ImageError("image is cut off")
    return height, width


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the first frame header."""
    place = 2
    while True:
        if data[place] != 0xFF:
            raise ImageError("image is damaged: no JPEG marker where one is expected")
        marker = data[place + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            place += 1
        elif marker in JPEG_BARE:
            place += 2
        elif marker in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return height, width
        else:
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]


def choose_decoder() -> Any:
    """OpenCV, which `wsss` itself uses, or else Pillow."""
    try:
        return opencv_decoder()
    except ImportError:
        pass
    try:
        return pillow_decoder()
    except ImportError:
        raise pb_utils.TritonModelException(
            "decode needs OpenCV or Pillow in the server's Python: "
            "pip install opencv-python-headless, or pillow"
        ) from None


def opencv_decoder() -> Any:
    """Applies the orientation by itself."""
    import cv2

    def decode(data: bytes) -> Any:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)

    return decode


def pillow_decoder() -> Any:
    """Takes the upper byte where a channel has 16 bits, as OpenCV does."""
    from PIL import Image, ImageOps

    def decode(data: bytes) -> Any:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as opened:
            image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        return np.asarray(image.convert("RGB"))

    return decode
