"""The trained networks of a run, applied to any image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ArtifactError, ConfigError, DataError
from ...runtime.bundle.inputs import AnyOf
from ...runtime.instances.instance_map import InstanceMap
from ...runtime.instances.maps import InstanceMaps, group_maps
from ...runtime.io.image_io import read_image
from ...runtime.io.score_maps import ScoreMaps
from ...runtime.refine.boundary_affinity import boundary_affinities
from ...runtime.refine.cam import normalise_cam
from ...runtime.refine.pseudo_labels import (
    WalkSettings,
    label_from_scores,
    walk_change,
    walk_scores,
)
from ..data.image_set import Sample
from ..engine.devices import choose_device
from ..engine.networks import AnyNetwork, Network, open_network
from ..evaluation.miou import Prediction
from ..methods import METHODS, open_method
from ..methods.contract import Affinities, AffinitySource, InstanceSource
from ..methods.shared.affinity_network import AffinityNetwork
from ..methods.shared.cam_stage import class_probabilities, image_activation
from ..methods.shared.classifier import CamClassifier
from ..methods.shared.segmenter_network import Segmenter
from ..methods.shared.segmenter_stage import segment_image
from ..recipe.recipe import WalkRecipe
from ..recipe.sections import NO_CRF
from ..recipes import load_recipe

CLASS_THRESHOLD = 0.5
"""Probability from which the classifier calls a class present."""


@dataclass(frozen=True)
class RunLabelled:
    """What a run says of one image.

    Attributes:
        label: (H, W) uint8: 0 background, class index + 1.
        change: see `walk_change`; None where nothing walks.
    """

    label: NDArray[np.uint8]
    change: float | None = None


class RunPredictor:
    """Opens the networks of a run when they are first needed.

    Attributes:
        classes: class names without background.
        thresholds: probability from which the classifier calls a class present: of each, or of all.
    """

    def __init__(self, folder: str | Path, device: str = "auto") -> None:
        """Look at a run.

        Args:
            device: auto, cpu or cuda.

        Raises:
            ArtifactError: the folder is no run, or none of its networks is trained yet.
        """
        folder = Path(folder)
        if not (folder / "recipe.toml").is_file():
            raise ArtifactError(f"'{folder}' is no run: expected a folder with recipe.toml in it")
        self.folder = folder
        self.recipe = load_recipe(folder / "recipe.toml")
        self.method = open_method(self.recipe.method)
        self.device = choose_device(device)
        self._networks: dict[str, Network] = {}
        self.classes: tuple[str, ...] = ()
        self.thresholds: float | NDArray[np.float64] = CLASS_THRESHOLD
        trained = [stage.name for stage in self.method.stages if self.has(stage.name)]
        if trained:
            self.network(trained[0], Network)
        else:
            raise ArtifactError(f"run '{folder}' has no trained network yet: finish `wsss train`")

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
        self, image: NDArray[np.uint8], labels: Sequence[int] | None, kind: str
    ) -> ScoreMaps:
        """CAMs, or CAMs after the walk.

        Args:
            image: (H, W, 3) uint8 RGB.
            labels: classes in the image; None: those the classifier finds; `AnyOf`: those of them
                that it finds.
        """
        maps = self._cams(image, labels)
        return maps if kind == "cam" else self._walked(image, maps)

    def affinity_network(self) -> AffinityNetwork:
        """The network that gives the affinities of the walk."""
        return self.network(self._affinity_source().stage, AffinityNetwork)

    @torch.no_grad()
    def affinities(self, image: NDArray[np.uint8]) -> Affinities:
        """Along which the scores of an image walk."""
        source = self._affinity_source()
        return source.affinities(self.affinity_network(), image, self.recipe, self.device)

    @torch.no_grad()
    def affinity_features(self, image: NDArray[np.uint8]) -> Tensor:
        """(1, C, h, w) features of an image, where affinities are made of features."""
        features = self._affinity_source().features
        if features is None:
            raise ValueError("the affinities of this run are not made of features")
        return features(self.affinity_network(), image, self.recipe, self.device)

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
        return class_probabilities(classifier, image, self.recipe.cam, self.device)

    def label(
        self,
        image: NDArray[np.uint8],
        labels: Sequence[int] | None = None,
        kind: str = "segmenter",
        *,
        crf: bool | None = None,
    ) -> NDArray[np.uint8]:
        """(H, W) uint8 label map of an image; see `predict`."""
        return self.predict(image, labels, kind, crf=crf).label

    def predict(
        self,
        image: NDArray[np.uint8],
        labels: Sequence[int] | None = None,
        kind: str = "segmenter",
        *,
        crf: bool | None = None,
    ) -> RunLabelled:
        """Label map of an image, and by how much the walk changed its CAMs.

        Args:
            image: (H, W, 3) uint8 RGB.
            labels: classes in the image, not used by the segmenter; None: those the classifier
                finds.
            crf: with or without the recipe's dense CRF; default: with it, except behind `cam` and
                `walk`.
        """
        recipe = self.recipe
        if crf is None:
            crf = kind in ("labels", "segmenter")
        if kind == "segmenter":
            segmenter = self.network("segmenter", Segmenter)
            section = recipe.segmenter
            if not crf:
                section = section.model_copy(update={"crf": NO_CRF})
            align = recipe.cam.align
            return RunLabelled(segment_image(segmenter, image, section, align, self.device))
        maps = self._cams(image, labels)
        if kind == "cam":
            return RunLabelled(self._label(image, maps, recipe.cam.threshold, crf))
        return self._walk_labelled(image, maps, self._walked(image, maps), crf)

    @torch.no_grad()
    def predict_instance_maps(
        self, image: NDArray[np.uint8], labels: Sequence[int] | None = None
    ) -> tuple[RunLabelled, InstanceMaps]:
        """As `predict` by `walk`, and what `instances` groups, of one set of CAMs and one look.

        Args:
            image, labels: see `score_maps`.

        Raises:
            ConfigError, ArtifactError: see `instances`.
        """
        source, maps = self.require_instances(), self._cams(image, labels)
        found, settings = self.affinity_maps(image), self._walk_settings()
        affinity, damping = boundary_affinities(found["boundary"], settings)
        walked = walk_scores(maps, affinity, settings, damping)
        labelled = self._walk_labelled(image, maps, walked, crf=False)
        return labelled, self._instance_maps(source, maps, found)

    def _walk_labelled(
        self, image: NDArray[np.uint8], cams: ScoreMaps, walked: ScoreMaps, crf: bool
    ) -> RunLabelled:
        recipe = self.walk_recipe()
        change = walk_change(cams, walked, self._walk_settings())
        return RunLabelled(self._label(image, walked, recipe.walk.threshold, crf), change)

    def _label(
        self, image: NDArray[np.uint8], maps: ScoreMaps, threshold: float, crf: bool
    ) -> NDArray[np.uint8]:
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
        activation = image_activation(classifier, image, self.recipe.cam, self.device)
        return normalise_cam(activation, labels, (image.shape[0], image.shape[1]))

    def _walked(self, image: NDArray[np.uint8], maps: ScoreMaps) -> ScoreMaps:
        affinity, damping = self.affinities(image)
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
        source, maps = self.require_instances(), self._cams(image, labels)
        (found,) = group_maps([self._instance_maps(source, maps, self.affinity_maps(image))])
        return found

    def _instance_maps(
        self, source: InstanceSource, maps: ScoreMaps, found: Mapping[str, Tensor]
    ) -> InstanceMaps:
        boundary, displacement = found["boundary"][0], found["displacement"][0]
        return InstanceMaps(
            maps, boundary, displacement, self._walk_settings(), source.settings(self.recipe)
        )

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

    def stages_of(self, kind: str) -> tuple[str, ...]:
        """Stages whose networks a way to label needs.

        Raises:
            ConfigError: it is one of methods with a walk, and the run's has none.
        """
        modes = self.method.modes
        if kind not in modes:
            raise ConfigError(
                f"run '{self.folder}' is of method {self.method.name}, which has no mode '{kind}': "
                f"choose of {', '.join(modes)}"
            )
        return modes[kind]

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

    def __init__(self, predictor: RunPredictor, kind: str, *, use_image_labels: bool) -> None:
        self.predictor, self.kind = predictor, kind
        self.image_labels_used = use_image_labels and kind != "segmenter"
        self.are_labels = kind in ("labels", "segmenter")
        self.description = f"{kind} of run {predictor.folder}"

    def predict(self, sample: Sample) -> Prediction:
        """Score maps (cam, walk) or a label map (labels, segmenter)."""
        labels = _labels_of(sample) if self.image_labels_used else None
        image = read_image(sample.image_path)
        if self.kind in ("cam", "walk"):
            return self.predictor.score_maps(image, labels, self.kind)
        return self.predictor.label(image, labels, self.kind)


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


def _labels_of(sample: Sample) -> Sequence[int]:
    if sample.labels is None:
        raise DataError(f"image '{sample.name}' has no image-level labels")
    return sample.labels
