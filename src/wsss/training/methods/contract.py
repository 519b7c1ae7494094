"""What a method is: one frozen object that carries everything that is asked of it anywhere.

A method is a folder with a `method.py` that makes its `METHOD`, and a name in `methods/__init__`.
Training, evaluation, reports, comparison, demo, export and runtime ask this object and never the
name of a method.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...runtime.instances.settings import InstanceSettings
from ...runtime.refine.dense_crf import CrfSettings
from ...runtime.refine.pseudo_labels import WalkSettings
from ..engine.networks import Network, NetworkSpec
from ..engine.run import Run, Stage
from ..recipe.recipe import Recipe
from ..recipe.sections import SegmenterSection
from ..report.page import Sheet

Affinities = tuple[Tensor, Tensor | None]
"""(1, K, h, w) with the exponent applied, and (1, 1, h, w) that CAMs are multiplied by, or None."""
AffinityKind = Literal["features", "boundary"]


@dataclass(frozen=True)
class AffinitySource:
    """The network whose output tells which neighbouring cells belong together.

    Attributes:
        kind: `features`: affinities are distances of features; `boundary`: they are what the
            boundaries on the path between two cells leave. Export has one graph for each kind.
        stage: the stage that trains the network; the exported graph has the same name.
        network: class of that network.
        read: (network, image, recipe, device) -> (1, C, h, w) features, or (1, 1, h, w) boundary.
        affinities: (what `read` gave, recipe) -> what the walk takes.
        maps: the arguments of `read` -> the outputs of the exported graph, computed in torch.
        walk_settings: the recipe's walk as the runtime takes it.
    """

    kind: AffinityKind
    stage: str
    network: type[Network]
    read: Callable[[Any, NDArray[np.uint8], Any, torch.device], Tensor]
    affinities: Callable[[Tensor, Any], Affinities]
    maps: Callable[[Any, NDArray[np.uint8], Any, torch.device], dict[str, Tensor]]
    walk_settings: Callable[[Any], WalkSettings]


@dataclass(frozen=True)
class InstanceSource:
    """How a method tells single objects apart, from the maps of its affinity network.

    Attributes:
        is_learnt: whether a recipe learns what instances need.
        settings: how the recipe groups cells into objects.
        remedy: what makes a run have instances, for messages.
    """

    is_learnt: Callable[[Any], bool]
    settings: Callable[[Any], InstanceSettings]
    remedy: str


@dataclass(frozen=True)
class Measured:
    """A result of a run that is measured by mIoU: a column of its report and of comparisons.

    Attributes:
        kind: its key; the stage's name, or a part of the stage such as `walk`.
        title: what reports call it.
        stage: the stage that makes it.
        place: folder of its stored maps, below the run; None: the stage's network is a segmenter.
        figure: key of its mIoU among the figures of the stage.
        threshold: of the recipe, for stored score maps.
        section: of the recipe, for a segmenter.
    """

    kind: str
    title: str
    stage: str
    place: str | None = None
    figure: str = "miou"
    threshold: Callable[[Any], float] = lambda recipe: 0.0
    section: Callable[[Any], SegmenterSection] = lambda recipe: recipe.segmenter


@dataclass(frozen=True)
class Published:
    """A figure that the authors of a method report.

    Attributes:
        miou: per cent.
        source: where it stands, and what is special to it.
    """

    miou: float
    source: str


@dataclass(frozen=True)
class DemoFigure:
    """A figure that the demo prints: `key` in its JSON, from `figure` of a stage.

    Attributes:
        figure: one key of the stage's figures, or several that are shown together.
    """

    key: str
    text: str
    stage: str
    figure: str | tuple[str, ...] = "miou"


@dataclass(frozen=True)
class Demo:
    """What a method is shown on.

    Attributes:
        recipe: name of a shipped recipe.
        figures: what is printed, in this order, as far as the run has it.
        scenes: key of `training.demo.run.SCENES`.
    """

    recipe: str
    figures: tuple[DemoFigure, ...]
    scenes: str = "apart"


def _no_sheets(run: Run, finished: Collection[str]) -> list[Sheet]:
    return []


@dataclass(frozen=True)
class Method:
    """A system that learns masks from image-level labels, from its paper to its exported graphs.

    Attributes:
        name: key in recipes, runs and bundles; lower-case letters.
        recipe: schema of its recipes.
        stages: in the order of the paper; each says which network it leaves.
        measured: what reports and comparisons show, in this order.
        demo: its demonstration on drawn scenes.
        affinity: where the affinities of its random walk come from; None: nothing walks.
        instances: how it tells single objects apart; None: it does not.
        label_threshold: background constant at which its stored score maps become labels.
        sheets: contact sheets of its own for the report of a run.
        has_label_column: whether the contact sheet that all methods have shows its pseudo labels.
        figure_names: names of its own figures in reports, by their keys.
        published: what its authors report on PASCAL VOC 2012, by backbone and kind of `measured`:
            on train with image-level labels, of segmenters on val without.
        seed_crf: the published dense CRF of its seeds, for `wsss bench crf`.
    """

    name: str
    recipe: type[Recipe]
    stages: tuple[Stage, ...]
    measured: tuple[Measured, ...]
    demo: Demo
    affinity: AffinitySource | None = None
    instances: InstanceSource | None = None
    label_threshold: Callable[[Any], float] = lambda recipe: recipe.cam.threshold
    sheets: Callable[[Run, Collection[str]], list[Sheet]] = _no_sheets
    has_label_column: bool = True
    figure_names: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[tuple[str, str], Published] = field(default_factory=dict)
    seed_crf: CrfSettings | None = None

    @property
    def modes(self) -> dict[str, tuple[str, ...]]:
        """Ways to label any image, and the stages whose networks each needs.

        walk: activation maps after the random walk; labels: the walk with the recipe's dense CRF;
        segmenter: the network of the last stage, which needs no labels; cam: activation maps alone.
        """
        modes: dict[str, tuple[str, ...]] = {}
        if self.affinity is not None:
            walking = ("cam", self.affinity.stage)
            modes |= {"walk": walking, "labels": walking}
        return modes | {"segmenter": ("segmenter",), "cam": ("cam",)}

    def stage(self, name: str) -> Stage:
        """The stage of a name, which the method must have."""
        return next(stage for stage in self.stages if stage.name == name)

    def networks(self, recipe: Recipe, num_classes: int) -> dict[str, NetworkSpec]:
        """All networks of a recipe by their stages, in the order in which they are trained."""
        return {
            stage.name: stage.network(recipe, num_classes)
            for stage in self.stages
            if stage.network is not None
        }
