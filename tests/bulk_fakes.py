"""A model for labelling jobs that needs no bundle; workers of any kind import it from here."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss.runtime.bulk.model import Answer
from wsss.runtime.bulk.writers.contract import Need

POISON = (255, 0, 255)
"""Colour of the first pixel of an image at which the process dies."""


@dataclass(frozen=True)
class BrightnessModel:
    """Labels pixels by their red: 0, 1 or 2.

    Attributes:
        seconds: that an image takes.
        pids: folder in which each process that opens the model leaves a file of its number.
    """

    seconds: float = 0
    pids: Path | None = None
    classes: tuple[str, ...] = ("dim", "bright")
    in_flight: int = 1
    workers: int | None = None
    offers: frozenset[Need] = frozenset({"confidence"})

    def identity(self) -> Mapping[str, Any]:
        return {"brightness": 1}

    def open(self, threads: int | None) -> "OpenBrightness":
        if self.pids is not None:
            (self.pids / str(os.getpid())).touch()
        return OpenBrightness(self.seconds)


@dataclass(frozen=True)
class OpenBrightness:
    seconds: float

    def label(
        self, images: Sequence[NDArray[np.uint8]], labels: Sequence[Sequence[int] | None]
    ) -> list[Answer]:
        time.sleep(self.seconds * len(images))
        for image in images:
            if tuple(image[0, 0]) == POISON:
                os.kill(os.getpid(), signal.SIGKILL)
        return [Answer(image[..., 0] // 86, image[..., 1] / np.float32(255)) for image in images]

    def close(self) -> None:
        pass
