"""`Predictor` and `Prediction`: one interface for runs, bundles and bundles on a server.

Neither torch nor onnx is imported here. `wsss.open_model` opens a predictor; `PredictorSpec` says
how another process opens the same one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, ShapeError, short_repr
from .instances.instance_map import InstanceMap

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from .instances.maps import InstanceMaps  # which imports torch

Image = NDArray[np.uint8]
Classes = Sequence[int | str] | None

_FIRST = ("walk", "labels", "segmenter")
"""Modes that are preferred by default, the first before the next; then any other but `cam`."""
_NEVER_BY_DEFAULT = "cam"


class AnyOf(tuple[int, ...]):
    """Classes that may be in an image: the classifier decides which of them are, no others."""


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for one image. Fields that the model cannot give are None.

    Attributes:
        label: (H, W) uint8: 0 background, class index + 1.
        confidence: (H, W) float32 in [0, 1]: the winner's share of all scores of its pixel.
        scores: (C + 1, h, w) float32, plane 0 the background; on the grid of the walk, or at the
            size of the image for a segmenter.
        classes: the class indices that competed, ascending: those that were given or that the
            classifier found; all classes for a segmenter.
        change: share of the cells of the walk's grid whose label the walk changed, in [0, 1],
            before any CRF. See `pseudo_labels.walk_change`.
        instances: the single objects, of the size of `label`; only from a predictor that was
            opened with `instances=True`.
        align: how the grid of the scores lies on the pixels; see `geometry.Align`.
        maps: what `instances` are made from, until they are grouped; see `group_instances`.

    Raises:
        ShapeError: the instances have another size than the label.
    """

    label: NDArray[np.uint8]
    confidence: NDArray[np.float32] | None = None
    scores: NDArray[np.float32] | None = None
    classes: tuple[int, ...] | None = None
    change: float | None = None
    instances: InstanceMap | None = None
    align: str = "reference"
    maps: "InstanceMaps | None" = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.instances is not None and self.instances.ids.shape != self.label.shape:
            raise ShapeError(
                f"instances are {self.instances.ids.shape}, their label map {self.label.shape}: "
                "expected one size"
            )


@dataclass(frozen=True)
class Mode:
    """How a mode of a model labels.

    Attributes:
        takes_classes: whether it uses given image-level classes.
        crf: whether it refines by the recipe's dense CRF when nothing else is asked for.
        has_crf: whether the recipe has a dense CRF for it.
    """

    takes_classes: bool
    crf: bool
    has_crf: bool


class Predictor(ABC):
    """A model that labels images: a run of `wsss train`, or a bundle of `wsss export`.

    The default mode is the same for all of them. With given classes it is `walk`, the class
    activation maps after the random walk, without dense CRF. Without classes it is `segmenter`, the
    trained segmentation network, without dense CRF. Where the model lacks that mode, it is the next
    best one that the model has. Pass `mode="labels"` for the walk with the recipe's CRF, or
    `crf=True` to add the recipe's CRF to any mode.

    Attributes:
        classes: class names without background.
        thresholds: probability from which the classifier calls each class present; None: the
            default of the model.
    """

    classes: tuple[str, ...]
    with_instances: bool = False

    @property
    @abstractmethod
    def modes(self) -> tuple[str, ...]:
        """Names of the modes that this model can label in."""

    @property
    @abstractmethod
    def has_instances(self) -> bool:
        """Whether the model can tell single objects apart."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What the model is, for messages: `bundle 'x'`."""

    @abstractmethod
    def mode_of(self, name: str) -> Mode:
        """Describe a mode.

        Args:
            name: one of `modes`.

        Returns:
            Mode: whether it takes given classes, and what it does with the dense CRF.

        Raises:
            ConfigError: the model has no such mode; ArtifactError: it lacks what the mode needs.
        """

    @abstractmethod
    def predict_equal(
        self,
        images: Sequence[Image],
        classes: Sequence[Sequence[int] | None],
        mode: str,
        crf: bool,
    ) -> list[Prediction]:
        """Predict images of one size, which go through the network together.

        Instances are not grouped yet: `maps` stands in their place.

        Args:
            images: (H, W, 3) uint8 RGB.
            classes: indices for each image; None: found by the classifier; `AnyOf`: those of them
                that the classifier finds.
            mode: one of `modes`.
            crf: whether to refine the labels by the recipe's dense CRF.

        Returns:
            A prediction for each image.
        """

    @abstractmethod
    def spec(self, mode: str, crf: bool) -> "PredictorSpec":
        """Say how another process opens this predictor.

        Args:
            mode: what it will label by, one of `modes`.
            crf: whether it will use the recipe's dense CRF.

        Returns:
            PredictorSpec: a description that can be pickled.
        """

    @property
    @abstractmethod
    def thresholds(self) -> Any:
        """See the class."""

    @thresholds.setter
    @abstractmethod
    def thresholds(self, values: Sequence[float] | None) -> None: ...

    def predict(
        self,
        images: Sequence[Image],
        classes: Sequence[Classes] | None = None,
        mode: str | None = None,
        crf: bool | None = None,
    ) -> list[Prediction]:
        """Label images of any sizes.

        Images of equal size go through the network together: pass as many as fit into memory.

        Args:
            images: (H, W, 3) uint8 RGB each.
            classes: for each image the classes in it, as indices or names, or None. None: the
                classifier finds them.
            mode: one of `modes`; default: see `Predictor`.
            crf: whether to refine the labels by the recipe's dense CRF, which needs torch; default:
                only in mode `labels`.

        Returns:
            A prediction for each image, in their order.

        Raises:
            ConfigError: unknown mode or class, or a mode without classes or CRF that was given
                them; ArtifactError: the model lacks what the mode needs; ShapeError: no image.
        """
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise ShapeError(f"image is {image.shape}, expected (H, W, 3) RGB")
        given: Sequence[Sequence[int] | None] = [None] * len(images)
        if classes is not None:
            given = [self._indices(each) for each in classes]
        if len(given) != len(images):
            raise ConfigError(
                f"classes are given for {len(given)} images, expected {len(images)}: give one list "
                "of classes for each image, or None"
            )
        mode, crf = self.choose(mode, crf, any(each is not None for each in given))
        places: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(images):
            places.setdefault(image.shape, []).append(place)
        found: dict[int, Prediction] = {}
        for equal in places.values():
            some = self.predict_equal(
                [images[place] for place in equal], [given[place] for place in equal], mode, crf
            )
            found |= zip(equal, group_instances(some), strict=True)
        return [found[place] for place in range(len(images))]

    def predict_one(
        self,
        image: Image,
        classes: Classes = None,
        mode: str | None = None,
        crf: bool | None = None,
    ) -> Prediction:
        """Label one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            classes: the classes in it, as indices or names; None: the classifier finds them.
            mode: one of `modes`; default: see `Predictor`.
            crf: whether to refine the labels by the recipe's dense CRF; default: only in mode
                `labels`.

        Returns:
            Prediction: the label map and what else the model gives.

        Raises:
            ConfigError, ArtifactError, ShapeError: see `predict`.
        """
        return self.predict([image], [classes], mode, crf)[0]

    def choose(self, mode: str | None, crf: bool | None, has_classes: bool) -> tuple[str, bool]:
        """Resolve the defaults of `predict`.

        Args:
            mode: what was asked for; None: the default.
            crf: what was asked for; None: the default of the mode.
            has_classes: whether image-level classes are given.

        Returns:
            The mode, and whether it uses the recipe's CRF.

        Raises:
            ConfigError, ArtifactError: see `predict`.
        """
        if mode is None:
            mode = self._default_mode(has_classes)
        described = self.mode_of(mode)
        if has_classes and not described.takes_classes:
            raise ConfigError(f"mode '{mode}' takes no image-level classes: leave them out")
        if crf is None:
            crf = described.crf and described.has_crf
        if crf and not described.has_crf:
            raise ConfigError(
                f"the recipe of {self.description} has no dense CRF after mode '{mode}': leave it "
                f"out, and label in mode {mode}"
            )
        return mode, crf

    def _default_mode(self, has_classes: bool) -> str:
        order = {name: place for place, name in enumerate(_FIRST)}
        names = [name for name in self.modes if name != _NEVER_BY_DEFAULT]
        names.sort(key=lambda name: order.get(name, len(order)))
        walked = [name for name in names if self.mode_of(name).takes_classes]
        others = [] if has_classes or self.with_instances else [n for n in names if n not in walked]
        if others or walked:
            return (others + walked)[0]
        if has_classes and names:
            advice = "leave them out"
            if _NEVER_BY_DEFAULT in self.modes:
                advice += f", or choose mode '{_NEVER_BY_DEFAULT}'"
            raise ConfigError(
                f"{self.description} has no walk, and its segmenter takes no image-level classes: "
                f"{advice}"
            )
        return _FIRST[-1]  # `mode_of` says what is missing

    def _indices(self, classes: Classes) -> Sequence[int] | None:
        if classes is None or isinstance(classes, AnyOf):
            return classes
        names = (classes,) if isinstance(classes, str) else classes
        return tuple(self._index(each) for each in names)

    def _index(self, name: int | str) -> int:
        if isinstance(name, str) and name in self.classes:
            return self.classes.index(name)
        if not isinstance(name, str) and 0 <= name < len(self.classes):
            return int(name)
        raise ConfigError(
            f"unknown class {name!r}: {self.description} has {', '.join(self.classes)}"
        )

    def close(self) -> None:  # noqa: B027 - most models have nothing to release
        """Release memory."""

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: "TracebackType | None",
    ) -> None:
        self.close()


def require_thresholds(values: Sequence[float] | None, classes: Sequence[str]) -> None:
    """Refuse thresholds of a classifier that are not one number in (0, 1) for each class.

    Raises:
        ConfigError: they are not.
    """
    if values is None:
        return
    are_numbers = all(isinstance(each, int | float) and 0 < each < 1 for each in values)
    if len(values) != len(classes) or not are_numbers:
        raise ConfigError(
            f"`thresholds` is {short_repr(list(values))}, expected {len(classes)} numbers between "
            f"0 and 1: one for each of {', '.join(classes)}"
        )


def unknown_mode(predictor: Predictor, name: str) -> ConfigError:
    """The error for a mode that no part of a model provides."""
    return ConfigError(
        f"unknown mode '{name}': {predictor.description} has {', '.join(predictor.modes)}"
    )


def group_instances(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The same predictions, with instances in place of the maps that they are made from."""
    maps = [each.maps for each in predictions if each.maps is not None]
    if not maps:
        return list(predictions)
    from .instances.maps import group_maps

    found = zip(predictions, group_maps(maps), strict=True)
    return [replace(each, instances=instances, maps=None) for each, instances in found]


@dataclass(frozen=True)
class PredictorSpec:
    """How to open a predictor in another process or on another machine; it is pickled.

    Attributes:
        opener: takes `threads` and returns the predictor; a function that can be pickled.
        classes: class names without background.
        mode, crf: what the job labels by; see `Predictor.predict`.
        details: all else that decides the pixels, JSON-compatible.
        provides: what the predictions hold besides labels: confidence, scores, instances.
        in_flight: images that may be in the network at once: 1 where it computes here.
        workers: processes that label best; None: one per core, each with its share of them. With 0
            the process that asked for the labels makes them.
        on_gpu: whether each of them computes on a GPU of its machine.
    """

    opener: Callable[..., Predictor]
    classes: tuple[str, ...]
    mode: str
    crf: bool
    details: Mapping[str, Any]
    provides: frozenset[str] = frozenset()
    in_flight: int = 1
    workers: int | None = None
    on_gpu: bool = False

    def identity(self) -> Mapping[str, Any]:
        """All that decides the pixels; a job of another identity is another job."""
        return {"mode": self.mode, "crf": self.crf, **self.details}

    def open(self, threads: int | None) -> Predictor:
        """Open the predictor.

        Args:
            threads: that may compute; None: as many as it likes.
        """
        return self.opener(threads=threads)
