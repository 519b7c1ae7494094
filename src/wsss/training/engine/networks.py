"""Building the networks of a run, and opening them again from their checkpoints."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from ...errors import ArtifactError, ConfigError
from ...runtime.bundle.graph_tensors import quoted, told
from ...runtime.refine.geometry import Align
from ..backbones.backbone import Backbone, Normalisation
from ..backbones.build import build_backbone
from ..backbones.foreign_weights import load_backbone_weights
from ..methods.affinitynet.network import AffinityNet
from ..methods.cian.network import CianSegmenter
from ..methods.irnet.network import IRNet
from ..methods.selfguided.network import SelfGuidedNet
from ..methods.shared.affinity_network import AffinityNetwork
from ..methods.shared.classifier import CamClassifier
from ..methods.shared.segmenter_network import Segmenter
from ..recipe.load import (
    AffinityNetRecipe,
    CianRecipe,
    IRNetRecipe,
    Recipe,
    SelfGuidedRecipe,
    WalkRecipe,
)
from .checkpoint import load_checkpoint, load_into, save_checkpoint

Network = CamClassifier | AffinityNetwork | Segmenter
AnyNetwork = TypeVar("AnyNetwork", bound=Network)

WITH_DISPLACEMENT = "displacement"
"""Head of an IRNet that has this branch; else ''."""
_CIAN_HEAD = re.compile(r"([1-9][0-9]{0,3}) channels(, no self affinity)?")
"""Head of a CIAN."""


@dataclass(frozen=True)
class Architecture:
    """What it takes to build a network again; stands in the header of its checkpoint."""

    kind: str
    backbone: str
    output_stride: int
    num_classes: int
    head: str
    align: Align

    def build(self) -> Network:
        """The network with fresh weights."""
        backbone = build_backbone(self.backbone, self.output_stride)
        if self.kind == "classifier":
            return CamClassifier(backbone, self.num_classes)
        if self.kind == "affinitynet":
            return AffinityNet(backbone, align_corners=self.align == "corners")
        if self.kind == "irnet":
            displacement = self.head == WITH_DISPLACEMENT
            return IRNet(backbone, self.align == "corners", displacement=displacement)
        if self.kind == "segmenter":
            return Segmenter(backbone, self.num_classes, head=self.head)
        if self.kind == "selfguided":
            corners = self.align == "corners"
            return SelfGuidedNet(backbone, self.num_classes, self.head, align_corners=corners)
        if self.kind == "cian":
            channels, self_affinity = _read_cian_head(self.head)
            return CianSegmenter(backbone, self.num_classes, channels, self_affinity)
        raise ArtifactError(f"unknown kind of network '{self.kind}'")


def classifier_architecture(recipe: Recipe, num_classes: int) -> Architecture:
    """The CAM classifier of a recipe."""
    backbone = recipe.backbone
    return Architecture(
        "classifier", backbone.name, backbone.output_stride, num_classes, "", recipe.cam.align
    )


def affinity_architecture(recipe: WalkRecipe) -> Architecture:
    """The network of a recipe that gives the affinities of the walk: AffinityNet or IRNet."""
    if isinstance(recipe, IRNetRecipe):
        kind, section = "irnet", recipe.irnet
        head = WITH_DISPLACEMENT if section.displacement else ""
        stride = section.output_stride
    elif isinstance(recipe, AffinityNetRecipe):
        kind, head, stride = "affinitynet", "", recipe.affinity.output_stride
    else:
        raise ConfigError(f"method '{recipe.method}' has no network of affinities")
    stride = stride or recipe.backbone.output_stride
    return Architecture(kind, recipe.backbone.name, stride, 0, head, recipe.cam.align)


def recipe_architectures(recipe: Recipe, num_classes: int) -> dict[str, Architecture]:
    """All networks of a recipe by their stages, in the order in which they are trained."""
    networks = {"cam": classifier_architecture(recipe, num_classes)}
    if isinstance(recipe, WalkRecipe):
        networks[recipe.affinity_stage] = affinity_architecture(recipe)
    if isinstance(recipe, CianRecipe):
        networks["cian"] = cian_architecture(recipe, num_classes)
    return networks | {"segmenter": segmenter_architecture(recipe, num_classes)}


def cian_architecture(recipe: CianRecipe, num_classes: int) -> Architecture:
    """The segmenter of a recipe's first round."""
    section = recipe.cian
    stride = section.output_stride or recipe.backbone.output_stride
    self_affinity = "" if section.self_affinity else ", no self affinity"
    head = f"{section.channels} channels{self_affinity}"
    return Architecture("cian", recipe.backbone.name, stride, num_classes, head, recipe.cam.align)


def _read_cian_head(head: str) -> tuple[int, bool]:
    """Channels, and whether images look at themselves."""
    found = _CIAN_HEAD.fullmatch(head)
    if found is None:
        raise ArtifactError(f"unknown head of a CIAN {quoted(head)}: expected '1024 channels'")
    return int(found[1]), found[2] is None


def segmenter_architecture(recipe: Recipe, num_classes: int) -> Architecture:
    """The segmenter of a recipe."""
    section = recipe.segmenter
    stride = section.output_stride or recipe.backbone.output_stride
    if isinstance(recipe, CianRecipe):
        return replace(cian_architecture(recipe, num_classes), output_stride=stride)
    kind = "selfguided" if isinstance(recipe, SelfGuidedRecipe) else "segmenter"
    return Architecture(
        kind, recipe.backbone.name, stride, num_classes, section.head, recipe.cam.align
    )


def start_network(
    architecture: Architecture,
    *,
    seed: int,
    weights_path: Path | None,
    classifier_path: Path | None = None,
    network_path: Path | None = None,
) -> Network:
    """A network at the start of its training.

    Args:
        weights_path: foreign weights of the backbone; None for random ones.
        classifier_path: checkpoint whose backbone is taken over instead, and whose classifier
            becomes the class planes of a segmenter with a linear head, or the middle of CIAN's.
        network_path: checkpoint of such a network that goes on learning instead.

    Raises:
        ArtifactError: weights that cannot be read or do not fit.
    """
    torch.manual_seed(seed)
    network = architecture.build()
    if network_path is not None:
        tensors, header = load_checkpoint(network_path)
        load_into(network, tensors, network_path)
        network.backbone.normalisation = Normalisation.from_dict(header["normalisation"])
        network.backbone.mark_pretrained()
    elif classifier_path is not None:
        tensors, header = load_checkpoint(classifier_path)
        prefix = "backbone."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        load_into(network.backbone, own, classifier_path)
        network.backbone.normalisation = Normalisation.from_dict(header["normalisation"])
        network.backbone.mark_pretrained()
        if isinstance(network, Segmenter):
            network.take_classifier(tensors["classifier.weight"])
    elif weights_path is not None:
        load_backbone_weights(network.backbone, weights_path)
    return network


def save_network(
    path: Path, network: Network, architecture: Architecture, classes: Sequence[str], method: str
) -> None:
    """Write a trained network with all that is needed to use it elsewhere."""
    header = {
        "method": method,
        "architecture": vars(architecture),
        "classes": list(classes),
        "normalisation": network.backbone.normalisation.to_dict(),
    }
    save_checkpoint(path, network.state_dict(), header)


def open_network(path: Path, device: torch.device) -> tuple[Network, Architecture, tuple[str, ...]]:
    """Read a network that `save_network` wrote; in evaluation mode.

    Returns:
        The network, its architecture and the class names.

    Raises:
        ArtifactError: not a checkpoint of ours, or damaged.
    """
    tensors, header = load_checkpoint(path)
    architecture, classes, normalisation = _read_header(header, path)
    network = architecture.build()
    load_into(network, tensors, path)
    network.backbone.normalisation = normalisation
    return network.to(device).eval(), architecture, classes


def open_as(
    kind: type[AnyNetwork], path: Path, device: torch.device
) -> tuple[AnyNetwork, tuple[str, ...]]:
    """`open_network` where only one kind of network will do; returns it and the class names.

    Raises:
        ArtifactError: also where the checkpoint holds another kind.
    """
    network, architecture, classes = open_network(path, device)
    if not isinstance(network, kind):
        raise ArtifactError(
            f"checkpoint '{path}' holds a network of kind '{architecture.kind}', expected "
            f"{kind.__name__}: run the stage again that writes it"
        )
    return network, classes


def _read_header(
    header: dict[str, Any], path: Path
) -> tuple[Architecture, tuple[str, ...], Normalisation]:
    try:
        architecture = Architecture(**header["architecture"])
        _require_types(architecture, path)
        classes = tuple(header["classes"])
        if not all(isinstance(name, str) for name in classes):
            raise TypeError("classes are no texts")
        normalisation = Normalisation.from_dict(header["normalisation"])
        counts_fit = architecture.num_classes in (0, len(classes)) and len(classes) < 255
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"checkpoint '{path}' has a damaged header: {told(error)}") from None
    if not counts_fit:
        raise ArtifactError(f"checkpoint '{path}': class list and network do not fit")
    return architecture, classes, normalisation


def _require_types(architecture: Architecture, path: Path) -> None:
    """Whether its fields can be looked up; `Architecture.build` knows what there is."""
    texts = (architecture.kind, architecture.backbone, architecture.head)
    numbers = (architecture.output_stride, architecture.num_classes)
    are_texts = all(isinstance(text, str) and text.isprintable() for text in texts)
    are_counts = all(type(number) is int and number >= 0 for number in numbers)
    if not (are_texts and are_counts and architecture.align in get_args(Align)):
        found = quoted(list(vars(architecture).values()))
        raise ArtifactError(f"checkpoint '{path}' has a damaged header: architecture is {found}")


def normalise(network: nn.Module, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) RGB in 0..255 -> what the network's backbone expects."""
    backbone = network.backbone
    if not isinstance(backbone, Backbone):
        raise ConfigError("the network has no backbone")
    return backbone.normalisation.apply(pixels)
