"""What a lower precision costs and gives: labels, mIoU, size and speed against float32."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError
from ...runtime.backends.contract import OpenGraph
from ...runtime.backends.registry import open_graph
from ...runtime.bundle.inputs import Layout, label_inputs
from ...runtime.io.image_io import read_image
from ...training.data.image_set import ImageSet, spread
from ...training.demo.scenes import draw_scene
from ...training.evaluation.miou import ConfusionMatrix
from ..precision import LEAST_AGREEMENT, Precision
from .reference import Arrays

NUM_IMAGES = 32
"""At most, spread over the list."""
_DRAWN_SIZE = (160, 192)


@dataclass(frozen=True)
class Photo:
    """An image to measure with.

    Attributes:
        classes: in it, or None where nobody said.
        truth: (H, W) mask, or None.
    """

    image: NDArray[np.uint8]
    classes: tuple[int, ...] | None = None
    truth: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Agreement:
    """A graph in a lower precision beside the same graph in float32, in onnxruntime on this CPU.

    Attributes:
        labels_equal: share of pixels over all images.
        miou, miou_float32: per cent; None where no image has a mask.
        speedup: median seconds of an image in float32 over those in this precision.
    """

    images: int
    labels_equal: float
    miou: float | None
    miou_float32: float | None
    bytes: int
    bytes_float32: int
    seconds: float
    seconds_float32: float
    speedup: float

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self)


def photos_of(images: ImageSet, split: str) -> list[Photo]:
    """Images of a list, or of the whole set where it has no such list."""
    known = {name for sample in images.samples for name in sample.splits}
    samples = (images.select(split) if split in known else images).samples
    return [
        Photo(
            read_image(sample.image_path),
            sample.labels,
            None if sample.mask is None else sample.mask.load(),
        )
        for sample in spread(samples, NUM_IMAGES)
    ]


def drawn_photos(seed: int = 1) -> list[Photo]:
    """Drawn scenes, where there is no image set; classes are left to the classifier."""
    generator = np.random.default_rng(seed)
    return [Photo(draw_scene(generator, _DRAWN_SIZE, index % 6).image) for index in range(12)]


def measure_agreement(
    path: Path, float32_path: Path, photos: Sequence[Photo], num_classes: int, layout: Layout
) -> Agreement:
    """Run both graphs over the images, in turn.

    Args:
        path, float32_path: of `label` or `segmenter`.
    """
    with ExitStack() as stack:
        graphs = [
            stack.enter_context(closing(open_graph(each, backend="onnxruntime", device="cpu")))
            for each in (path, float32_path)
        ]
        takes_classes = any(spec.name == "present" for spec in graphs[0].describe().inputs)
        equal = counted = 0
        seconds: tuple[list[float], list[float]] = ([], [])
        matrices = [ConfusionMatrix(num_classes), ConfusionMatrix(num_classes)]
        for photo in photos:
            inputs = label_inputs(
                photo.image[None], [photo.classes], num_classes, layout, takes_classes=takes_classes
            )
            labels = list(_labels(graphs, inputs, seconds))
            equal += int((labels[0] == labels[1]).sum())
            counted += labels[0].size
            if photo.truth is not None:
                for matrix, label in zip(matrices, labels, strict=True):
                    matrix.add(label, photo.truth)
    mious = [100 * m.miou() if m.counts.any() else None for m in matrices]
    own, float32 = (median(values) for values in seconds)
    return Agreement(
        len(photos),
        equal / counted,
        mious[0],
        mious[1],
        path.stat().st_size,
        float32_path.stat().st_size,
        own,
        float32,
        float32 / own,
    )


def _labels(
    graphs: Sequence[OpenGraph], inputs: Arrays, seconds: Sequence[list[float]]
) -> Iterator[NDArray[np.uint8]]:
    for graph, record in zip(graphs, seconds, strict=True):
        started = time.perf_counter()
        label = graph.run(inputs, ["label"])["label"][0]
        record.append(time.perf_counter() - started)
        yield label


def require_agreement(name: str, precision: Precision, agreement: Agreement) -> None:
    """Refuse a precision that changes too many labels.

    Raises:
        ArtifactError: with the figure and the bound.
    """
    least = LEAST_AGREEMENT[precision]
    if agreement.labels_equal < least:
        miou = ""
        if agreement.miou is not None and agreement.miou_float32 is not None:
            miou = f", mIoU {agreement.miou:.1f} against {agreement.miou_float32:.1f}"
        raise ArtifactError(
            f"graph '{name}' in {precision} gives the labels of float32 in "
            f"{agreement.labels_equal:.2%} of the pixels of {agreement.images} images{miou}; "
            f"expected at least {least:.1%}: take another precision, leave the graph out "
            "of `graphs`, calibrate on more images of yours, or `force` it"
        )
