"""A model that finds instances in drawn photographs, for tests of labelling jobs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss.runtime.bulk.formats.contract import Need
from wsss.runtime.instances.instance_map import InstanceMap
from wsss.runtime.predictor import Prediction


@dataclass(frozen=True)
class ColourModel:
    """Tells objects apart by colour: red is the class (51 each), green the object, blue its score.

    Attributes:
        fault: how it spoils its instances: `nan` (scores) or `size`.
    """

    fault: str = ""
    classes: tuple[str, ...] = ("cat", "dog")
    mode: str = "walk"
    crf: bool = False
    in_flight: int = 1
    workers: int | None = 0
    on_gpu: bool = False
    provides: frozenset[Need] = frozenset({"confidence", "instances"})

    def identity(self) -> Mapping[str, Any]:
        return {"colours": 1}

    def open(self, threads: int | None) -> "OpenColours":
        return OpenColours(self.fault)


@dataclass(frozen=True)
class OpenColours:
    fault: str

    def predict_equal(
        self,
        images: Sequence[NDArray[np.uint8]],
        labels: Sequence[Sequence[int] | None],
        mode: str,
        crf: bool,
    ) -> list[Prediction]:
        return [self._answer(image) for image in images]

    def _answer(self, image: NDArray[np.uint8]) -> Prediction:
        label = image[..., 0] // 51
        objects, first, places = np.unique(image[..., 1], return_index=True, return_inverse=True)
        assert objects[0] == 0  # the background
        ids = places.reshape(label.shape).astype(np.uint16)
        classes = label.ravel()[first[1:]].astype(np.int64) - 1
        scores = image[..., 2].ravel()[first[1:]] / np.float32(255)
        if self.fault == "nan":
            scores[-1:] = np.nan
        if self.fault == "size":
            ids = ids[1:]
        confidence = np.where(np.indices(label.shape)[0] % 2, 1, np.float32(0.5))
        return Prediction(label, confidence, instances=InstanceMap(ids, classes, scores))

    def close(self) -> None:
        pass
