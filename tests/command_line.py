"""The `wsss` command inside this process, and images that it must refuse or take."""

import io
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import cv2
import numpy as np
from PIL import Image
from tiny_run import files_of

from wsss.cli.main import main

PROGRESS = re.compile(r"[^:]+: (\d+/\d+ after \d+ s.*|up to date)")
HEIGHT, WIDTH = 40, 48


class Outcome(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    def succeeded(self) -> "Outcome":
        """Itself, after a look at the exit code."""
        assert self.code == 0, self.err
        return self

    def line(self, code: int = 1) -> str:
        """The one line that a command which ended with this code said beside its progress."""
        assert self.code == code, self.err
        assert self.out == ""
        *progress, line = self.err.splitlines()
        assert line.startswith("wsss: "), self.err
        assert all(PROGRESS.fullmatch(text) for text in progress), self.err
        return line


def wsss(*arguments: object) -> Outcome:
    """Call the command; anything but an exit is passed on."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        patch.object(sys, "argv", ["wsss", *map(str, arguments)]),
    ):
        try:
            main()
        except SystemExit as ending:
            code = ending.code or 0
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())


def everything(folder: Path) -> dict[str, bytes]:
    """Content of all files below a folder, by their path."""
    return {name: data for name, data in files_of(folder, "**/*.*").items() if data}


def train(data: Path, recipe: object, out: Path, *arguments: object) -> Outcome:
    """`wsss train` with its three arguments that must be given."""
    return wsss("train", recipe, "--data", data, "--out", out, *arguments)


def picture(seed: int = 0) -> Image.Image:
    """Noise of 40 x 48 pixels."""
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def break_file(path: Path, how: str) -> None:
    """Make an image zero bytes long, cut it, or turn it into something else."""
    data = path.read_bytes()
    broken = {"zero-byte": b"", "truncated": data[: len(data) // 2], "corrupt": b"no image " * 99}
    path.write_bytes(broken[how])


def _one_pixel(path: Path) -> None:
    picture().resize((1, 1)).save(path.with_suffix(".png"))


def _cmyk(path: Path) -> None:
    picture().convert("CMYK").save(path.with_suffix(".jpg"))


def _16_bit(path: Path) -> None:
    pixels = np.asarray(picture()).astype(np.uint16) * 257
    path.with_suffix(".png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def _16_bit_grey(path: Path) -> None:
    pixels = np.asarray(picture())[..., 0].astype(np.uint16) * 257
    path.with_suffix(".tif").write_bytes(cv2.imencode(".tif", pixels)[1].tobytes())


def _grey(path: Path) -> None:
    picture().convert("L").save(path.with_suffix(".jpg"))


def _alpha(path: Path) -> None:
    image = picture()
    image.putalpha(7)
    image.save(path.with_suffix(".png"))


def _exif_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().rotate(90, expand=True).save(path.with_suffix(".jpg"), exif=exif)


ODD_IMAGES: dict[str, Callable[[Path], None]] = {
    "one_pixel": _one_pixel,
    "cmyk": _cmyk,
    "deep": _16_bit,
    "deep_grey": _16_bit_grey,
    "grey": _grey,
    "alpha": _alpha,
    "rotated": _exif_rotated,
}
"""Unusual images that are taken, by name; all but the first show 40 x 48 pixels."""
