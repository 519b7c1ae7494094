"""What is exported: the networks of a run as traced graphs, and the settings around them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..runtime.bundle.inputs import Layout
from ..training.backbones.backbone import Normalisation
from ..training.data.image_set import ImageSet
from ..training.engine.networks import Network
from ..training.methods import open_method
from ..training.methods.contract import Method
from ..training.predict.run_predictor import CLASS_THRESHOLD, RunPredictor
from ..training.recipe.recipe import Recipe, WalkRecipe
from .graphs.graph_context import GraphSettings, Walking
from .graphs.trace import NetworkGraph, network_graph


def graphs_of(method: Method) -> dict[str, tuple[str, ...]]:
    """Graphs that a bundle of this method may have, and the networks in each."""
    modes = method.modes
    graphs = {"cam": modes["cam"]}
    if method.affinity is not None:
        stage = method.affinity.stage
        graphs |= {stage: (stage,), "refine": (), "label": modes["walk"]}
    return graphs | {"segmenter": modes["segmenter"]}


@dataclass(frozen=True)
class ExportSource:
    """A run, opened for export.

    Attributes:
        graphs: names of the graphs that are written.
        networks: traced networks by stage.
    """

    predictor: RunPredictor
    settings: GraphSettings
    graphs: tuple[str, ...]
    networks: dict[str, NetworkGraph]

    @property
    def networks_of(self) -> dict[str, tuple[str, ...]]:
        """See `graphs_of`."""
        return graphs_of(self.predictor.method)

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        return self.predictor.recipe

    def normalisations(self) -> dict[str, Normalisation]:
        """By network."""
        return {name: network.normalisation for name, network in self.networks.items()}

    def strides(self) -> dict[str, int]:
        """Pixels per cell of each map."""
        strides = {name: network.stride for name, network in self.networks.items()}
        return strides | {"cam_map": self.settings.map_stride}

    def bundle_settings(self) -> dict[str, Any]:
        """What shaped the graphs, and the dense CRF that they leave out, for `bundle.json`."""
        recipe = self.recipe
        settings = {
            "cam": recipe.cam.model_dump(
                mode="json", include={"scales", "flip", "map_stride", "threshold"}
            ),
            "classifier": {
                "side": self.settings.classifier_side,
                "threshold": self.settings.class_threshold,
                "takes_thresholds": True,  # `present` between 0 and 1
            },
            "segmenter": recipe.segmenter.model_dump(
                mode="json", include={"scales", "flip", "crf"}
            ),
        }
        if isinstance(recipe, WalkRecipe):
            settings["walk"] = recipe.walk.model_dump(mode="json")
        if (instances := self.predictor.method.instances) is not None:
            settings["instances"] = asdict(instances.settings(recipe))
        return settings

    def part_of(self, graph: str) -> str:
        """Key of `graphs.models.MODELS`: the graph of affinities has the name of its stage."""
        return "affinity" if graph == self.settings.affinity_stage else graph


def open_source(
    run_folder: Path,
    graphs: tuple[str, ...] | None,
    layout: Layout,
    images: ImageSet | None = None,
) -> ExportSource:
    """Open a run and trace the networks that the graphs need.

    Args:
        graphs: names out of `graphs_of`; default: all whose networks are trained.
        images: which must have the classes of the run; refused before anything is traced.

    Raises:
        ConfigError: an unknown graph; ArtifactError: no run, a network that is not trained, or
        images of other classes.
    """
    predictor = RunPredictor(run_folder, "cpu")
    if images is not None:
        images.require_classes(predictor.classes, f"run '{run_folder}'")
    known = graphs_of(predictor.method)
    if graphs is not None and not graphs:
        raise ConfigError(f"no graphs are named: choose of {', '.join(known)}")
    for name in graphs or ():
        if name not in known:
            raise ConfigError(f"unknown graph '{name}': choose of {', '.join(known)}")
    # Refinement has no network in it, but it is compared on what these two give.
    needed = known | ({"refine": known["label"]} if "label" in known else {})
    chosen = graphs or tuple(
        name for name, stages in needed.items() if all(predictor.has(stage) for stage in stages)
    )
    stages = sorted({stage for name in chosen for stage in needed[name]})
    networks = {stage: network_graph(stage, predictor.network(stage, Network)) for stage in stages}
    settings = graph_settings(predictor.recipe, len(predictor.classes), layout)
    return ExportSource(predictor, settings, chosen, networks)


def graph_settings(recipe: Recipe, num_classes: int, layout: Layout) -> GraphSettings:
    """What the graphs take from a recipe."""
    source = open_method(recipe.method).affinity
    walking = None
    if isinstance(recipe, WalkRecipe) and source is not None:
        settings = source.walk_settings(recipe)
        walking = Walking(source.stage, source.kind, recipe.walk.scales, settings)
    return GraphSettings(
        num_classes=num_classes,
        layout=layout,
        align=recipe.cam.align,
        cam_scales=recipe.cam.scales,
        cam_flip=recipe.cam.flip,
        map_stride=recipe.cam.map_stride,
        classifier_side=recipe.cam.train.augmentation.crop_size,
        class_threshold=CLASS_THRESHOLD,
        walking=walking,
        segmenter_scales=recipe.segmenter.scales,
        segmenter_flip=recipe.segmenter.flip,
    )
