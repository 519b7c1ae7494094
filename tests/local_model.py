"""A model for tests of labelling jobs: quick, picklable, and able to fail in every way."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsss.errors import DataError, ServerError
from wsss.runtime.predictor import Prediction

POISON, REFUSED, FATAL, ONCE, NAN, LARGE = 66, 67, 68, 69, 70, 71
"""Values of the first pixel: kills its process; fails; ends the job; kills it the first time;
gets a confidence that is no number; needs more memory than there is."""


@dataclass(frozen=True)
class LocalModel:
    """Labels by the red channel; see `wsss.runtime.predictor.PredictorSpec`."""

    name: str = "local"
    classes: tuple[str, ...] = ("cat", "dog", "bird", "tree")
    mode: str = "walk"
    crf: bool = False
    in_flight: int = 1
    workers: int | None = 0
    provides: frozenset[str] = frozenset(("confidence", "scores"))
    seconds: float = 0.0
    is_deadly: bool = False
    """Kills the process that opens it."""
    memory: Path | None = None
    """Folder in which it remembers what it has killed."""
    heeds_pixels: bool = True
    """Whether the first pixel of an image can make it fail."""
    pids: Path | None = None
    """Folder in which each process that opens it leaves a file of its number."""
    on_gpu: bool = False

    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name}

    def open(self, threads: int | None) -> "OpenLocal":
        if self.is_deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.pids is not None:
            (self.pids / str(os.getpid())).touch()
        return OpenLocal(self)


class OpenLocal:
    def __init__(self, model: LocalModel) -> None:
        self.model = model

    def predict_equal(
        self,
        images: Sequence[NDArray[np.uint8]],
        labels: Sequence[Sequence[int] | None],
        mode: str,
        crf: bool,
    ) -> list[Prediction]:
        assert len({image.shape for image in images}) == 1
        time.sleep(self.model.seconds)
        for image in images if self.model.heeds_pixels else ():
            first = int(image[0, 0, 0])
            if first == REFUSED:
                raise DataError("the model does not like this image")
            if first == LARGE:
                raise MemoryError("Unable to allocate 9 GiB")
            if first == FATAL:
                raise ServerError("gone")
            if first == POISON or (first == ONCE and self._is_first(image)):
                os.kill(os.getpid(), signal.SIGKILL)
        return [self._answer(*each) for each in zip(images, labels, strict=True)]

    def close(self) -> None:
        pass

    def _is_first(self, image: NDArray[np.uint8]) -> bool:
        assert self.model.memory is not None
        path = self.model.memory / f"{image.sum()}"
        if path.exists():
            return False
        path.touch()
        return True

    def _answer(self, image: NDArray[np.uint8], labels: Sequence[int] | None) -> Prediction:
        label = image[..., 0] % 5
        if labels is not None:
            allowed = [0, *(index + 1 for index in labels)]
            label = np.asarray(allowed, np.uint8)[image[..., 0] % len(allowed)]
        if not self.model.provides:  # many times the memory of the label
            return Prediction(label)
        confidence = (image[..., 1] / 255).astype(np.float32)
        if self.model.heeds_pixels and image[0, 0, 0] == NAN:
            confidence[-1, -1] = np.nan
        scores = np.zeros((5, *image.shape[:2]), np.float32)
        np.put_along_axis(scores, label[None].astype(np.intp), confidence[None], 0)
        return Prediction(label, confidence, scores)


def write_images(folder: Path, count: int, special: Mapping[int, int] | None = None) -> Path:
    """Images of three sizes, the same each time; `special` sets the first pixel of some."""
    sizes = ((12, 18), (10, 14), (18, 12))
    for number in range(count):
        height, width = sizes[number % 3]
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        pixels[0, 0] = (special or {}).get(number, 0)
        path = folder / f"{number % 4}" / f"image {number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())
    return folder
