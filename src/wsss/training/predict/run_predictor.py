"""The trained networks of a run, applied to any image."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ArtifactError, ConfigError, DataError
from ...runtime.instances.instance_map import InstanceMap
from ...runtime.instances.maps import InstanceMaps, group_maps
from ...runtime.io.files import file_digest
from ...runtime.io.image_io import read_image
from ...runtime.io.score_maps import ScoreMaps
from ...runtime.predictor import (
    AnyOf,
    Image,
    Mode,
    Prediction,
    Predictor,
    PredictorSpec,
    require_thresholds,
    unknown_mode,
)
from ...runtime.refine.boundary_affinity import boundary_affinities
from ...runtime.refine.cam import normalise_cam
from ...runtime.refine.pseudo_labels import (
    WalkSettings,
    label_from_scores,
    walk_change,
    walk_scores,
)
from ..data.image_set import Sample
from ..engine.networks import AnyNetwork, Network, choose_device, open_network
from ..methods import METHODS, open_method
from ..methods.contract import Affinities, AffinitySource, InstanceSource
from ..methods.shared.classifier import CamClassifier, class_probabilities, image_activation
from ..methods.shared.segmenter_network import Segmenter, segment_image
from ..recipe.recipe import WalkRecipe
from ..recipe.sections import NO_CRF
from ..recipes import load_recipe

Step = Literal[
    "classifier",
    "CAM network",
    "affinity network",
    "affinity",
    "walk",
    "label",
    "segmenter network",
]
"""Networks include resizing the image and joining what they give at several scales."""
CLASS_THRESHOLD = 0.5
"""Probability from which the classifier calls a class present."""


class RunPredictor(Predictor):
    """Opens the networks of a run when they are first needed.

    Predictions of a run have no confidence and no scores.

    Attributes:
        classes: class names without background.
        thresholds: probability from which the classifier calls a class present: of each, or of all.
        timer: is entered around each step of a prediction, with the name of the step, see `Step`.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "auto",
        *,
        threads: int | None = None,
        thresholds: Sequence[float] | None = None,
        instances: bool = False,
    ) -> None:
        """Look at a run.

        Args:
            device: auto, cpu or cuda.
            threads: of torch in this process; None: as they are.
            instances: tell single objects in mode `walk`.

        Raises:
            ArtifactError: the folder is no run, or none of its networks is trained yet.
            ConfigError: instances of a run that has none.
        """
        folder = Path(folder)
        if not (folder / "recipe.toml").is_file():
            raise ArtifactError(f"'{folder}' is no run: expected a folder with recipe.toml in it")
        if threads is not None:
            torch.set_num_threads(threads)
        self.folder = folder
        self.recipe = load_recipe(folder / "recipe.toml")
        self.method = open_method(self.recipe.method)
        self.device = choose_device(device)
        self._device_asked = device
        self._networks: dict[str, Network] = {}
        self.classes: tuple[str, ...] = ()
        self._thresholds: float | NDArray[np.float64] = CLASS_THRESHOLD
        self.thresholds = thresholds
        self.with_instances = instances
        self.timer: Callable[[Step], AbstractContextManager[object]] = nullcontext
        if instances:
            self.require_instances()
        trained = [stage.name for stage in self.method.stages if self.has(stage.name)]
        if trained:
            self.network(trained[0], Network)
        else:
            raise ArtifactError(f"run '{folder}' has no trained network yet: finish `wsss train`")
        require_thresholds(thresholds, self.classes)

    @property
    def thresholds(self) -> Any:
        """See the class."""
        return self._thresholds

    @thresholds.setter
    def thresholds(self, values: Any) -> None:
        if isinstance(values, Sequence):
            values = np.asarray(values)
        self._thresholds = CLASS_THRESHOLD if values is None else values

    @property
    def description(self) -> str:
        """See `Predictor`."""
        return f"run '{self.folder}'"

    @property
    def modes(self) -> tuple[str, ...]:
        """See `Predictor`."""
        known = self.method.modes
        return tuple(mode for mode, stages in known.items() if all(map(self.has, stages)))

    @property
    def has_instances(self) -> bool:
        """See `Predictor`."""
        source = self.method.instances
        return source is not None and source.is_learnt(self.recipe)

    def mode_of(self, name: str) -> Mode:
        """See `Predictor`."""
        recipe = self.recipe
        for stage in self.stages_of(name):
            self.weights_path(stage)
        if name == "segmenter":
            return Mode(False, False, recipe.segmenter.crf.settings() is not None)
        has_crf = isinstance(recipe, WalkRecipe) and recipe.walk.crf.settings() is not None
        return Mode(True, name == "labels", has_crf)

    @torch.no_grad()
    def predict_equal(
        self,
        images: Sequence[Image],
        classes: Sequence[Sequence[int] | None],
        mode: str,
        crf: bool,
    ) -> list[Prediction]:
        """See `Predictor`; one image after the other."""
        return [
            self._predict(image, labels, mode, crf)
            for image, labels in zip(images, classes, strict=True)
        ]

    def spec(self, mode: str, crf: bool) -> PredictorSpec:
        """See `Predictor`; the process that asks for the labels makes them."""
        weights = [self.weights_path(name) for name in self.stages_of(mode)]
        thresholds = None
        if not (np.isscalar(self._thresholds) and self._thresholds == CLASS_THRESHOLD):
            of_each = np.broadcast_to(self._thresholds, len(self.classes))
            thresholds = tuple(float(each) for each in of_each)
        details: dict[str, Any] = {
            "run": {path.parent.name: file_digest(path) for path in weights},
            "thresholds": thresholds,
            "recipe": self.recipe.model_dump(mode="json", include={"cam", "walk", "segmenter"}),
        }
        if self.with_instances:
            details["instances"] = self.recipe.model_dump(mode="json")["instances"]
        return PredictorSpec(
            partial(
                RunPredictor,
                self.folder.resolve(),
                self._device_asked,
                thresholds=thresholds,
                instances=self.with_instances,
            ),
            self.classes,
            mode,
            crf,
            details,
            frozenset({"instances"} if self.with_instances else ()),
            workers=0,
            on_gpu=self.device.type == "cuda",
        )

    def has(self, stage: str) -> bool:
        """Whether a stage has left a trained network."""
        return (self.folder / stage / "weights.safetensors").is_file()

    def weights_path(self, stage: str) -> Path:
        """File of a trained network.

        Raises:
            ArtifactError: that stage has not been run.
        """
        path = self.folder / stage / "weights.safetensors"
        if not path.is_file():
            raise ArtifactError(
                f"run '{self.folder}' has no trained '{stage}' network: run that stage by "
                f"`wsss train --stages {stage}`"
            )
        return path

    def score_maps(
        self, image: NDArray[np.uint8], labels: Sequence[int] | None, mode: str
    ) -> ScoreMaps:
        """CAMs, or CAMs after the walk.

        Args:
            image: (H, W, 3) uint8 RGB.
            labels: classes in the image; None: those the classifier finds; `AnyOf`: those of them
                that it finds.
        """
        maps = self._cams(image, labels)
        return maps if mode == "cam" else self._walked(image, maps)

    def affinity_network(self) -> Network:
        """The network that gives the affinities of the walk."""
        source = self._affinity_source()
        return self.network(source.stage, source.network)

    @torch.no_grad()
    def affinities(self, image: NDArray[np.uint8]) -> Affinities:
        """Along which the scores of an image walk."""
        source = self._affinity_source()
        with self.timer("affinity network"):
            found = source.read(self.affinity_network(), image, self.recipe, self.device)
        with self.timer("affinity"):
            return source.affinities(found, self.recipe)

    @torch.no_grad()
    def affinity_features(self, image: NDArray[np.uint8]) -> Tensor:
        """(1, C, h, w) features of an image, where affinities are made of features."""
        source = self._affinity_source()
        if source.kind != "features":
            raise ValueError("the affinities of this run are not made of features")
        return source.read(self.affinity_network(), image, self.recipe, self.device)

    @torch.no_grad()
    def affinity_maps(self, image: NDArray[np.uint8]) -> dict[str, Tensor]:
        """What the exported graph of affinities gives for an image."""
        source = self._affinity_source()
        return source.maps(self.affinity_network(), image, self.recipe, self.device)

    @torch.no_grad()
    def find_classes(self, image: NDArray[np.uint8]) -> list[int]:
        """Classes whose probability reaches `thresholds`, by the classifier alone."""
        probabilities = self.class_probabilities(image)
        return [int(index) for index in np.flatnonzero(probabilities >= self.thresholds)]

    def class_probabilities(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(C,) probability that each class is in the image, by the classifier alone."""
        classifier = self.network("cam", CamClassifier)
        with self.timer("classifier"):
            return class_probabilities(classifier, image, self.recipe.cam, self.device)

    def recipe_label(
        self, image: NDArray[np.uint8], classes: Sequence[int] | None, mode: str
    ) -> NDArray[np.uint8]:
        """(H, W) uint8 label map as the recipe makes and measures it.

        In the modes `labels` and `segmenter` that is with the recipe's dense CRF, if it has one.
        """
        crf = mode in ("labels", "segmenter") and self.mode_of(mode).has_crf
        return self.predict_equal([image], [classes], mode, crf)[0].label

    def _predict(
        self, image: NDArray[np.uint8], classes: Sequence[int] | None, mode: str, crf: bool
    ) -> Prediction:
        recipe = self.recipe
        if mode == "segmenter":
            segmenter = self.network("segmenter", Segmenter)
            section = recipe.segmenter
            if not crf:
                section = section.model_copy(update={"crf": NO_CRF})
            with self.timer("segmenter network"):
                label = segment_image(segmenter, image, section, recipe.cam.align, self.device)
            return Prediction(label, classes=tuple(range(len(self.classes))))
        if mode == "cam":
            maps = self._cams(image, classes)
            label = self._label(image, maps, recipe.cam.threshold, crf)
            return Prediction(label, classes=_classes_of(maps))
        if self.with_instances and not crf:
            return self._predict_maps(image, classes)
        maps = self._cams(image, classes)
        return self._walk_labelled(image, maps, self._walked(image, maps), crf)

    def _predict_maps(self, image: NDArray[np.uint8], classes: Sequence[int] | None) -> Prediction:
        """Labels of the walk and what instances are made from, of one set of CAMs and one look."""
        cams, maps = self._cams(image, classes), self.affinity_maps(image)
        settings = self._walk_settings()
        affinity, damping = boundary_affinities(maps["boundary"], settings)
        walked = walk_scores(cams, affinity, settings, damping)
        found = self._walk_labelled(image, cams, walked, crf=False)
        return replace(found, maps=self._instance_maps(cams, maps))

    def _walk_labelled(
        self, image: NDArray[np.uint8], cams: ScoreMaps, walked: ScoreMaps, crf: bool
    ) -> Prediction:
        recipe = self.walk_recipe()
        with self.timer("label"):
            change = walk_change(cams, walked, self._walk_settings())
        label = self._label(image, walked, recipe.walk.threshold, crf)
        return Prediction(label, classes=_classes_of(cams), change=change)

    def _label(
        self, image: NDArray[np.uint8], maps: ScoreMaps, threshold: float, crf: bool
    ) -> NDArray[np.uint8]:
        with self.timer("label"):
            return label_from_scores(
                maps,
                threshold=threshold,
                align=self.recipe.cam.align,
                image=image,
                crf=self.walk_recipe().walk.crf.settings() if crf else None,
                device=self.device,
            )

    def _cams(self, image: NDArray[np.uint8], labels: Sequence[int] | None) -> ScoreMaps:
        """See `score_maps`."""
        classifier = self.network("cam", CamClassifier)
        if labels is None:
            labels = self.find_classes(image)
        elif isinstance(labels, AnyOf):
            labels = [index for index in self.find_classes(image) if index in labels]
        with self.timer("CAM network"):
            activation = image_activation(classifier, image, self.recipe.cam, self.device)
            return normalise_cam(activation, labels, (image.shape[0], image.shape[1]))

    def _walked(self, image: NDArray[np.uint8], maps: ScoreMaps) -> ScoreMaps:
        affinity, damping = self.affinities(image)
        with self.timer("walk"):
            return walk_scores(maps, affinity, self._walk_settings(), damping)

    def _walk_settings(self) -> WalkSettings:
        return self._affinity_source().walk_settings(self.recipe)

    def _affinity_source(self) -> AffinitySource:
        source = self.method.affinity
        if source is None:
            self.walk_recipe()  # says what to do
            raise ValueError(f"method {self.method.name} has a walk and no affinities")
        return source

    @torch.no_grad()
    def instances(
        self, image: NDArray[np.uint8], labels: Sequence[int] | None = None
    ) -> InstanceMap:
        """The single objects in an image, of its size.

        Args:
            image, labels: see `score_maps`.

        Raises:
            ConfigError: the run's method or recipe has no instances.
            ArtifactError: its networks are not trained yet.
        """
        self.require_instances()
        cams = self._cams(image, labels)
        (found,) = group_maps([self._instance_maps(cams, self.affinity_maps(image))])
        return found

    def _instance_maps(self, cams: ScoreMaps, maps: Mapping[str, Tensor]) -> InstanceMaps:
        settings = self.require_instances().settings(self.recipe)
        boundary, displacement = maps["boundary"][0], maps["displacement"][0]
        return InstanceMaps(cams, boundary, displacement, self._walk_settings(), settings)

    def walk_recipe(self) -> WalkRecipe:
        """The recipe, if its method has a random walk.

        Raises:
            ConfigError: it does not.
        """
        if not isinstance(self.recipe, WalkRecipe):
            raise ConfigError(
                f"run '{self.folder}' is of method {self.recipe.method}, which has no walk: choose "
                f"of {', '.join(self.method.modes)}"
            )
        return self.recipe

    def stages_of(self, mode: str) -> tuple[str, ...]:
        """Stages whose networks a mode needs.

        Raises:
            ConfigError: the run's method has no such mode.
        """
        modes = self.method.modes
        if mode not in modes:
            raise unknown_mode(self, mode)
        return modes[mode]

    def require_instances(self) -> InstanceSource:
        """How the run tells single objects apart.

        Raises:
            ConfigError: it does not.
        """
        source = self.method.instances
        if source is None or not source.is_learnt(self.recipe):
            remedies = [m.instances.remedy for m in map(open_method, METHODS) if m.instances]
            raise ConfigError(f"run '{self.folder}' has no instances: {' or '.join(remedies)}")
        return source

    def network(self, stage: str, kind: type[AnyNetwork]) -> AnyNetwork:
        """A trained network, opened when it is first asked for.

        Raises:
            ArtifactError: that stage has not been run, or left another kind of network.
        """
        network = self._networks.get(stage)
        if not isinstance(network, kind):
            path = self.weights_path(stage)
            network, classes = open_network(kind, path, self.device)
            if self.classes and classes != self.classes:
                raise ArtifactError(
                    f"'{path}' was trained on other classes than the rest of the run"
                )
            self._networks[stage], self.classes = network, classes
        return network


class RunPredictions:
    """A run's networks as something to be measured."""

    def __init__(self, predictor: RunPredictor, mode: str, *, use_image_labels: bool) -> None:
        self.predictor, self.mode = predictor, mode
        self.image_labels_used = use_image_labels and mode != "segmenter"
        self.are_labels = mode in ("labels", "segmenter")
        self.description = f"{mode} of run {predictor.folder}"

    def predict(self, sample: Sample) -> ScoreMaps | NDArray[np.uint8]:
        """Score maps (cam, walk) or a label map (labels, segmenter)."""
        labels = _labels_of(sample) if self.image_labels_used else None
        image = read_image(sample.image_path)
        if self.are_labels:
            return self.predictor.recipe_label(image, labels, self.mode)
        return self.predictor.score_maps(image, labels, self.mode)


class RunInstances:
    """A run's instances as something to be measured: see `InstancePredictions`."""

    def __init__(self, predictor: RunPredictor, *, use_image_labels: bool) -> None:
        """Refuse a run that has none; see `RunPredictor.require_instances`."""
        predictor.require_instances()
        self.predictor = predictor
        self.image_labels_used = use_image_labels
        self.description = f"instances of run {predictor.folder}"

    def predict(self, sample: Sample) -> InstanceMap:
        """The single objects in an image."""
        labels = _labels_of(sample) if self.image_labels_used else None
        return self.predictor.instances(read_image(sample.image_path), labels)


def _classes_of(maps: ScoreMaps) -> tuple[int, ...]:
    return tuple(sorted(int(index) for index in maps.classes))


def _labels_of(sample: Sample) -> Sequence[int]:
    if sample.labels is None:
        raise DataError(f"image '{sample.name}' has no image-level labels")
    return sample.labels
