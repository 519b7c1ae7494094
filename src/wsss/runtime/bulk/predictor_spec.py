"""What a job needs of a model: how to open it in a worker, and what it says of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, ShapeError
from ..instances.instance_map import InstanceMap
from .formats.contract import Need

if TYPE_CHECKING:
    from ..instances.maps import InstanceMaps  # which imports torch


@dataclass(frozen=True)
class Answer:
    """What a model says of one image.

    Attributes:
        label: (H, W) uint8: 0 background, class index + 1.
        confidence: (H, W) float32 in [0, 1], of that label; None where the model has none.
        scores: (C + 1, h, w) float32, plane 0 the background; None as before.
        change: share of the cells of the walk's grid whose label the walk changed, before any CRF;
            None where nothing walks, or the model does not tell. See `pseudo_labels.walk_change`.
        align: how the grid of the scores lies on the pixels; see `geometry.Align`.
        instances: of the size of the label; None where the model has none.
        maps: in their place what they are made from: then `TiledModel` groups them, those of a
            batch together and those of tiles as one image.

    Raises:
        ShapeError: the instances have another size.
    """

    label: NDArray[np.uint8]
    confidence: NDArray[np.float32] | None = None
    scores: NDArray[np.float32] | None = None
    change: float | None = None
    align: str = "reference"
    instances: InstanceMap | None = None
    maps: "InstanceMaps | None" = None

    def __post_init__(self) -> None:
        if self.instances is not None and self.instances.ids.shape != self.label.shape:
            raise ShapeError(
                f"instances are {self.instances.ids.shape}, their label map {self.label.shape}: "
                "expected one size"
            )


class OpenModel(Protocol):
    """A model in the process that labels; as many threads as `in_flight` may call it at once."""

    def label(
        self, images: Sequence[NDArray[np.uint8]], labels: Sequence[Sequence[int] | None]
    ) -> list[Answer]:
        """Label images of one size.

        Args:
            images: (H, W, 3) uint8 RGB.
            labels: class indices of each; None: those that the classifier finds; `AnyOf`: those
                of them that it finds.

        Raises:
            DataError, ShapeError, DeadlineError, MemoryError: it fails on these images; any other
            error ends the job.
        """

    def close(self) -> None:
        """Give memory back."""


class Model(Protocol):
    """How to open a model; it travels to other processes and machines, so it is pickled.

    Attributes:
        classes: names without background.
        in_flight: images that may be in the network at once: 1 where it computes here.
        offers: what it can tell besides labels.
        workers: processes that label best; None: one a core, each with its share of them. With 0
            it is labelled in the process that asked for it.
        on_gpu: whether each of them computes on a GPU of its machine.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def in_flight(self) -> int: ...

    @property
    def offers(self) -> frozenset[Need]: ...

    @property
    def workers(self) -> int | None: ...

    @property
    def on_gpu(self) -> bool: ...

    def identity(self) -> Mapping[str, Any]:
        """All that decides the pixels, JSON-compatible; another identity is another job."""

    def open(self, threads: int | None) -> OpenModel:
        """Open it.

        Args:
            threads: that may compute; None: as many as it likes.
        """


def require_plain_walk(is_plain: bool) -> None:
    """Refuse instances beside labels that are not those of the walk, or that a CRF changes.

    Raises:
        ConfigError: they are such labels.
    """
    if not is_plain:
        raise ConfigError(
            "`instances` requires `mode` walk without the dense CRF: add `mode` walk and remove "
            "`crf`"
        )
