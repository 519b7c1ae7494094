"""Pictures for people: label maps and score maps drawn over photographs, sheets, encoding."""

import base64
from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import ShapeError
from ..io.palette import IGNORE_INDEX, voc_palette

Picture = NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""
Label = TypeVar("Label", np.uint8, np.uint16)

_WHITE = np.array([255, 255, 255], np.uint8)
_DOT = (230, 60, 30)
_HATCHING = np.indices((6, 6)).sum(0) % 6 < 2


def draw_labels(
    image: Picture,
    labels: NDArray[np.uint8],
    *,
    palette: NDArray[np.uint8] | None = None,
    opacity: float = 0.6,
    ids: NDArray[np.uint16] | None = None,
) -> Picture:
    """A photograph whose objects are grey tinted by class, with a white line around each.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8; 0 stays as photographed, 255 (no statement) gets white hatching.
        palette: (256, 3) uint8 RGB by label value; None: that of VOC.
        opacity: share of the class colour, in [0, 1].
        ids: (H, W) of instances, 0 for none, between which there are lines, too.

    Raises:
        ShapeError: sizes differ.
    """
    for found in (labels,) if ids is None else (labels, ids):
        if found.shape != image.shape[:2]:
            raise ShapeError(
                f"labels are {found.shape}, the image {image.shape[:2]}: they must be of one size"
            )
    colours = voc_palette() if palette is None else palette
    drawn = image.copy()
    # Over its own colours a tint would no longer be the colour of the legend.
    brightness = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    counts = cv2.calcHist([labels], [0], None, [256], [0, 256])
    for value in np.flatnonzero(counts).tolist():
        if value not in (0, IGNORE_INDEX):
            inside = labels == value
            tinted = _mix(greys, colours[value], opacity)  # (256, 3), by brightness
            drawn[inside] = tinted[brightness[inside]]
    if counts[IGNORE_INDEX]:
        tiles = labels.shape[0] // 6 + 1, labels.shape[1] // 6 + 1
        hatching = np.tile(_HATCHING, tiles)[: labels.shape[0], : labels.shape[1]]
        drawn[(labels == IGNORE_INDEX) & hatching] = _WHITE
    drawn[outlines(labels)] = _WHITE
    if ids is not None:
        drawn[_lines(ids, ids != 0)] = _WHITE
    return drawn


def outlines(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(H, W) pixels of objects that touch, to the right or below, a pixel of another label.

    Of two neighbours that differ the object's pixel is taken, so that lines lie on the object;
    pixels without a statement (255) draw no line.
    """
    return _lines(labels, (labels != 0) & (labels != IGNORE_INDEX))


def _lines(labels: NDArray[np.uint8 | np.uint16], drawable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """See `outlines`; drawable: (H, W), which pixels are of objects."""
    lines = np.zeros(labels.shape, bool)
    for first, second in (
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
    ):
        differs = labels[first] != labels[second]
        lines[first] |= differs & drawable[first]
        lines[second] |= differs & drawable[second] & ~drawable[first]
    return lines


def draw_heat(image: Picture, scores: NDArray[np.float32], *, opacity: float = 0.75) -> Picture:
    """The greatest score of any class as colours from blue over green to red on a grey photograph.

    Args:
        image: (H, W, 3) uint8 RGB.
        scores: (n, h, w) in [0, 1], on any grid; n = 0 draws no response anywhere.
        opacity: share of the heat colour at score 1, in [0, 1]; it fades to 0 at score 0.

    Raises:
        ShapeError: `scores` is not (n, h, w).
    """
    if scores.ndim != 3 or 0 in scores.shape[1:]:
        raise ShapeError(f"scores are {scores.shape}, expected (n, h, w)")
    height, width = image.shape[:2]
    greatest = scores.max(0, initial=0).astype(np.float32)
    full = cv2.resize(greatest, (width, height), interpolation=cv2.INTER_LINEAR).clip(0, 1)
    level = np.rint(full * 255).astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    share = opacity * np.sqrt(full)[..., None]
    return _mix(_grey(image), np.asarray(heat, np.uint8), share)


def draw_directions(field: NDArray[np.float32], longest: float) -> Picture:
    """Vectors as colours, (h, w, 3): the direction is the hue, the length the brightness.

    Args:
        field: (2, h, w), (dy, dx).
        longest: length of the brightest colour, above 0; longer vectors have it too.

    Raises:
        ShapeError: `field` is not (2, h, w).
    """
    if field.ndim != 3 or len(field) != 2 or 0 in field.shape[1:]:
        raise ShapeError(f"a field of vectors is {field.shape}, expected (2, h, w)")
    dy, dx = field.astype(np.float32)
    hue = np.degrees(np.arctan2(dy, dx)) % 360
    brightness = (np.hypot(dy, dx) / longest).clip(max=1)
    colours = np.stack([hue, np.ones_like(hue), brightness], -1).astype(np.float32)
    return np.rint(cv2.cvtColor(colours, cv2.COLOR_HSV2RGB) * 255).astype(np.uint8)


def direction_wheel(side: int) -> Picture:
    """The key to `draw_directions`: a disc whose points have the colours of their own places."""
    steps = np.linspace(-1, 1, side, dtype=np.float32)
    dy, dx = np.meshgrid(steps, steps, indexing="ij")
    wheel = draw_directions(np.stack([dy, dx]), 1)
    wheel[np.hypot(dy, dx) > 1] = _WHITE
    return wheel


def draw_dots(
    image: Picture, centres: NDArray[np.floating], radii: NDArray[np.floating]
) -> Picture:
    """Discs with a white rim on a grey photograph, the smallest on top.

    Args:
        centres: (n, 2) row and column in pixels.
        radii: (n,) in pixels, without the rim.
    """
    drawn = _grey(image)
    for index in np.argsort(-radii, kind="stable").tolist():
        row, column = (round(float(place)) for place in centres[index])
        radius = round(float(radii[index]))
        cv2.circle(drawn, (column, row), radius + 1, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(drawn, (column, row), radius, _DOT, -1, cv2.LINE_AA)
    return drawn


def shrink(picture: Picture, longest: int) -> Picture:
    """The picture with its longer side at most `longest` pixels; never enlarged."""
    height, width = _shrunk_size((picture.shape[0], picture.shape[1]), longest)
    if (height, width) == picture.shape[:2]:
        return picture
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def shrink_labels(labels: NDArray[Label], longest: int) -> NDArray[Label]:
    """A label map at the size that `shrink` gives its image; labels are picked, never mixed."""
    height, width = _shrunk_size((labels.shape[0], labels.shape[1]), longest)
    rows = (np.arange(height) * labels.shape[0] + labels.shape[0] // 2) // height
    columns = (np.arange(width) * labels.shape[1] + labels.shape[1] // 2) // width
    rows, columns = rows.clip(max=labels.shape[0] - 1), columns.clip(max=labels.shape[1] - 1)
    picked: NDArray[Label] = labels[rows[:, None], columns]
    return picked


def contact_sheet(
    rows: Sequence[Sequence[Picture | None]],
    *,
    tile: tuple[int, int],
    gap: int = 6,
    colour: tuple[int, int, int] = (255, 255, 255),
) -> Picture:
    """One picture of many, in rows; each is shrunk to its tile and centred there.

    Args:
        rows: pictures of any size; None leaves the tile empty; rows may differ in length.
        tile: (height, width) in pixels.
        gap: pixels between tiles and around the sheet.

    Raises:
        ShapeError: no rows, or no picture in any.
    """
    num_columns = max((len(row) for row in rows), default=0)
    if not num_columns:
        raise ShapeError("a contact sheet has no pictures, expected at least one")
    height, width = tile
    sheet = np.empty(
        (gap + len(rows) * (height + gap), gap + num_columns * (width + gap), 3), np.uint8
    )
    sheet[:] = colour
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            if picture is None:
                continue
            fitted = _fit(picture, tile)
            top = gap + row * (height + gap) + (height - fitted.shape[0]) // 2
            left = gap + column * (width + gap) + (width - fitted.shape[1]) // 2
            sheet[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    return sheet


def encode_jpeg(picture: Picture, quality: int = 85) -> bytes:
    """JPEG bytes; for photographs."""
    return _encode(picture, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_png(picture: Picture) -> bytes:
    """PNG bytes; exact."""
    return _encode(picture, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 6])


def data_uri(data: bytes) -> str:
    """Bytes of a PNG or JPEG as text that stands in for an address in HTML."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _grey(image: Picture) -> Picture:
    brightness = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.cvtColor(brightness, cv2.COLOR_GRAY2RGB), np.uint8)


def _mix(below: Picture, above: Picture, opacity: float | NDArray[np.float32]) -> Picture:
    mixed = (1 - opacity) * below.astype(np.float32) + opacity * above.astype(np.float32)
    return np.asarray(np.rint(mixed), np.uint8)


def _shrunk_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    factor = min(1.0, longest / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _fit(picture: Picture, tile: tuple[int, int]) -> Picture:
    height, width = picture.shape[:2]
    factor = min(1.0, tile[0] / height, tile[1] / width)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    if size == (height, width):
        return picture
    small = cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def _encode(picture: Picture, suffix: str, options: list[int]) -> bytes:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ShapeError(f"a picture is {picture.dtype} {picture.shape}, expected (H, W, 3) uint8")
    _, data = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    return bytes(data.tobytes())
