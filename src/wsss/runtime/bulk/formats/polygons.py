"""Formats made of polygons: LabelMe and YOLO, and the polygons along the edges of label maps.

Work grows with the length of all edges, also for noise: a hundred thousand specks or holes.
"""

import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..inputs.images import LabelledImage
from .contract import JobView, Writer, compact_json, origin, origin_text, plain
from .runs import Integers, regions

FORMAT_VERSION = "6.3.1"
"""The release of LabelMe that the files were checked against."""


class LabelMeWriter(Writer):
    """`labelme/<output>.json`, to be put beside the image, where LabelMe looks for it.

    Corners are middles of pixels: LabelMe fills a polygon together with its edge and gets the mask
    back exactly. Its polygons have no holes, so a bridge joins them to the ring; pixels without a
    statement belong to no shape. `imagePath` is the image's own name, because that place is
    beside it.
    """

    def __init__(self, job: JobView) -> None:
        super().__init__(job)
        self._names = [plain(name) for name in job.classes]
        self._origin = origin(job)

    def files(self, image: LabelledImage) -> Iterator[tuple[str, bytes]]:
        height, width = image.label.shape
        shapes = [
            {
                "label": self._names[value - 1],
                "points": (ring + 0.5).tolist(),
                "group_id": None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
            }
            for value, ring in class_rings(image.label)
        ]
        document = {
            "version": FORMAT_VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": plain(posixpath.basename(image.ref.name)),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
            "wsss": self._origin,
        }
        yield f"labelme/{image.ref.output}.json", f"{compact_json(document)}\n".encode("ascii")


class YoloWriter(Writer):
    """`yolo/labels/<output>.txt` and `yolo/data.yaml`, for `yolo segment train`.

    A line is the class index and the x and y of each corner, as shares of width and height, of
    the middles of pixels: the training code cuts them to whole pixels and gets the mask back
    exactly. YOLO has no holes, so a bridge joins them to the ring; and no pixels without a
    statement, so they count as background. An image without objects has an empty file.
    """

    def files(self, image: LabelledImage) -> Iterator[tuple[str, bytes]]:
        height, width = image.label.shape
        lines = []
        for value, ring in class_rings(image.label):
            shares = ((ring + 0.5) / (width, height)).ravel()
            numbers = " %.6f" * shares.size % tuple(shares.tolist())
            lines.append(f"{value - 1}{numbers}\n")
        yield f"yolo/labels/{image.ref.output}.txt", "".join(lines).encode("ascii")

    def collect(self, entries: Iterable[Any]) -> Iterator[tuple[str, Iterator[bytes]]]:
        names = [
            f"  {index}: {_quoted(plain(name))}" for index, name in enumerate(self.job.classes)
        ]
        lines = [
            f"# wsss: {origin_text(self.job)}",
            "# Put or link the images into the folder `images` beside this file: YOLO looks for",
            "# labels/a/b.txt where the image is images/a/b.jpg.",
            "train: images",
            "val: images",
            f"nc: {len(names)}",
            "names:" if names else "names: {}",
            *names,
        ]
        yield "yolo/data.yaml", iter(["\n".join([*lines, ""]).encode("ascii")])


def _quoted(name: str) -> str:
    """A YAML string in ASCII: Python's escapes of characters are YAML's."""
    escaped = name.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'"{escaped}"'


Ring = NDArray[np.int32]
"""(n, 2) pixels (x, y) in order around a region; the last is joined to the first."""


def class_rings(labels: NDArray[np.uint8]) -> Iterator[tuple[int, Ring]]:
    """Label value and ring of each connected region of each class, classes ascending.

    Filling a ring together with the pixels on it (`cv2.fillPoly`) gives the region back exactly.
    Pixels that touch at a corner are connected. A hole is joined to the ring by a bridge: the ring
    runs along a row to the hole, around it, and back over the same pixels. A region of one or two
    pixels repeats its last one: readers expect three.

    Args:
        labels: (H, W) uint8, not empty; background and 255 have no rings.
    """
    for region in regions(labels):
        top, left, height, width = region.box
        part = labels[top : top + height, left : left + width] == region.value
        for ring in _corners(_closed_rings(part.view(np.uint8))):
            yield region.value, ring + np.array([left, top], np.int32)


def _closed_rings(mask: NDArray[np.uint8]) -> list[Ring]:
    """Every pixel along the edge of each region, its holes joined."""
    contours, family = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    found = [np.asarray(contour[:, 0], np.int32) for contour in contours]
    # family: next, previous, first child, parent of each contour; holes are the children.
    parents = family[0, :, 3]
    holes: dict[int, list[Ring]] = {}
    for place in np.flatnonzero(parents >= 0).tolist():
        holes.setdefault(int(parents[place]), []).append(found[place])
    if holes:
        before = np.pad(mask, ((0, 0), (1, 0)))[:, :-1]
        run_starts = np.flatnonzero(mask & ~before)
    return [
        _join(found[place], holes[place], run_starts, mask.shape[1])
        if place in holes
        else found[place]
        for place in np.flatnonzero(parents < 0).tolist()
    ]


def _join(outer: Ring, holes: list[Ring], run_starts: Integers, width: int) -> Ring:
    """One ring out of the one around a region and those around its holes.

    From the leftmost pixel around a hole the way left stays inside the region until it meets
    another ring: the outer one, or that of a hole which reaches further left.

    Args:
        run_starts: flat index of each pixel in the mask whose left neighbour is not in it.
        width: of the mask.
    """
    turned = []
    for hole in holes:
        entry = int(np.lexsort((hole[:, 1], hole[:, 0]))[0])
        turned.append(np.concatenate((hole[entry:], hole[:entry])))
    turned.sort(key=lambda hole: (int(hole[0, 0]), int(hole[0, 1])))
    rings = [outer, *turned]
    stops = _meetings(rings, run_starts, width)
    pieces = []
    unfinished = [(0, 0, iter(stops[0]))]
    while unfinished:
        ring, begin, rest = unfinished.pop()
        stop = next(rest, None)
        if stop is None:
            pieces.append(rings[ring][begin:])
            if ring:  # back at the bridge
                pieces.append(rings[ring][:1])
            continue
        at, hole_ring = stop
        pieces.append(rings[ring][begin : at + 1])
        unfinished.append((ring, at, rest))
        unfinished.append((hole_ring, 0, iter(stops[hole_ring])))
    return np.concatenate(pieces)


def _meetings(rings: list[Ring], run_starts: Integers, width: int) -> list[list[tuple[int, int]]]:
    """For each ring the places where bridges leave it, ascending, and the hole each leads to.

    Where several rings share the pixel, the first of them takes the bridge: it is joined already.
    """
    lengths = np.array([len(ring) for ring in rings])
    pixels = np.concatenate(rings).astype(np.int64)
    codes = pixels[:, 1] * width + pixels[:, 0]
    firsts = np.cumsum(lengths) - lengths
    entries = codes[firsts[1:]]
    meeting = run_starts[np.searchsorted(run_starts, entries, "right") - 1]
    order = np.argsort(codes, kind="stable")
    places = order[np.searchsorted(codes[order], meeting)]
    owners = np.searchsorted(firsts, places, "right") - 1
    stops: list[list[tuple[int, int]]] = [[] for _ in rings]
    ascending = np.argsort(places, kind="stable")
    for hole in ascending.tolist():
        owner = int(owners[hole])
        stops[owner].append((int(places[hole] - firsts[owner]), hole + 1))
    return stops


def _corners(rings: list[Ring]) -> list[Ring]:
    """Only the pixels where each ring turns; at least three entries a ring."""
    pixels = np.concatenate(rings)
    lengths = np.array([len(ring) for ring in rings])
    for differs in (_from_the_last, _in_direction):
        keep = differs(pixels, lengths)
        keep[np.cumsum(lengths)[lengths == 1] - 1] = True
        lengths = np.add.reduceat(keep, np.cumsum(lengths) - lengths, dtype=np.int64)
        pixels = pixels[keep]
    ends = np.cumsum(lengths)
    repeats = np.ones(len(pixels), np.int64)
    repeats[ends - 1] += np.maximum(3 - lengths, 0)
    corners = np.repeat(pixels, repeats, 0)
    ends = np.cumsum(np.maximum(lengths, 3)).tolist()
    return [corners[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _from_the_last(pixels: Ring, lengths: Integers) -> NDArray[np.bool_]:
    """Whether each pixel is another than the one before it in its ring."""
    return np.asarray(_steps(pixels, lengths).any(1))


def _in_direction(pixels: Ring, lengths: Integers) -> NDArray[np.bool_]:
    """Whether a ring goes on from each pixel in another direction than it came."""
    towards = np.sign(_steps(pixels, lengths))
    after = np.arange(1, len(pixels) + 1)
    ends = np.cumsum(lengths)
    after[ends - 1] = ends - lengths
    return np.asarray((towards != towards[after]).any(1))


def _steps(pixels: Ring, lengths: Integers) -> Ring:
    """From the pixel before in the same ring to each one."""
    before = np.arange(-1, len(pixels) - 1)
    ends = np.cumsum(lengths)
    before[ends - lengths] = ends - 1
    return np.asarray(pixels - pixels[before], np.int32)
