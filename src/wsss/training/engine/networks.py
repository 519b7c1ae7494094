"""Networks of a run: what builds them, and how they are kept in checkpoints and opened again."""

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import torch
from torch import Tensor, nn

from ...errors import ArtifactError, ConfigError, MissingDependencyError, one_line, short_repr
from ...runtime.refine.geometry import Align
from ...version import __version__
from ..backbones.backbone import Backbone, Normalisation
from ..backbones.build import build_backbone
from ..backbones.foreign_weights import load_backbone_weights
from .checkpoint import load_checkpoint, load_into, save_checkpoint

MAX_ARGUMENT = 4096
"""Largest whole number among the arguments of a network in a checkpoint."""


class Network(nn.Module):
    """A backbone with a head: the base of every network that a stage trains.

    A subclass takes the backbone first; its other arguments are JSON values, which its checkpoint
    holds by name. It implements `read`; `forward` and all of its other methods that take images
    expect RGB in 0..255, which the backbone normalises.

    Attributes:
        old_kind: what checkpoints of format 1 call the class; '' for newer classes.
    """

    backbone: Backbone
    old_kind: ClassVar[str] = ""

    @classmethod
    def old_arguments(cls, old: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments from the header of a checkpoint of format 1.

        Args:
            old: `num_classes`, `head` and `align`.
        """
        raise NotImplementedError

    @property
    def map_stride(self) -> int:
        """Pixels per cell of its maps."""
        return self.backbone.output_stride

    def forward(self, pixels: Tensor, inside: Tensor | None = None) -> Any:
        """Compute the network's result for images.

        Args:
            pixels: (B, 3, H, W) RGB in 0..255, uint8 or float.
            inside: (B or 1, 1, H, W) bool, which pixels show the image; the others get the mean
                colour. None: all of them.

        Returns:
            What `read` returns.
        """
        return self.read(self.backbone(pixels, inside))

    def read(self, taps: Mapping[str, Tensor]) -> Any:
        """Compute the network's result from the feature maps of its backbone."""
        raise NotImplementedError

    def traced(self) -> tuple[Callable[[Mapping[str, Tensor]], Any], tuple[str, ...]]:
        """The layers that export traces after the backbone, and the names of their outputs."""
        return self.read, ("logits",)

    def take_classifier(self, weight: Tensor) -> None:
        """Start class planes, where it has any, from a trained classifier.

        Args:
            weight: (C, F, 1, 1) of the CAM classifier.
        """


AnyNetwork = TypeVar("AnyNetwork", bound=Network)


@dataclass(frozen=True)
class NetworkSpec:
    """What it takes to build a network; stands in the header of its checkpoint.

    Attributes:
        kind: class of the network.
        backbone: name of its backbone.
        output_stride: of the backbone.
        arguments: further arguments of the class, JSON values by name.
    """

    kind: type[Network]
    backbone: str
    output_stride: int
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Network:
        """The network with fresh weights."""
        return self.kind(build_backbone(self.backbone, self.output_stride), **self.arguments)

    def to_header(self) -> dict[str, Any]:
        """JSON-compatible form for `spec_from_header`."""
        return {
            "class": self.kind.__name__,
            "backbone": self.backbone,
            "output_stride": self.output_stride,
            "arguments": dict(self.arguments),
        }


def start_network(
    spec: NetworkSpec,
    *,
    seed: int,
    weights_path: Path | None,
    classifier_path: Path | None = None,
    network_path: Path | None = None,
) -> Network:
    """A network at the start of its training.

    Args:
        weights_path: foreign weights of the backbone; None for random ones.
        classifier_path: checkpoint whose backbone is taken over instead, and whose classifier is
            given to `Network.take_classifier`.
        network_path: checkpoint of such a network that goes on learning instead.

    Raises:
        ArtifactError: weights that cannot be read or do not fit.
    """
    torch.manual_seed(seed)
    network = spec.build()
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
        network.take_classifier(tensors["classifier.weight"])
    elif weights_path is not None:
        load_backbone_weights(network.backbone, weights_path)
    return network


def save_network(
    path: Path, network: Network, spec: NetworkSpec, classes: Sequence[str], method: str
) -> None:
    """Write a trained network with all that is needed to use it elsewhere."""
    header = {
        "wsss": __version__,
        "method": method,
        "network": spec.to_header(),
        "classes": list(classes),
        "normalisation": network.backbone.normalisation.to_dict(),
    }
    save_checkpoint(path, network.state_dict(), header)


def open_network(
    kind: type[AnyNetwork], path: Path, device: torch.device
) -> tuple[AnyNetwork, tuple[str, ...]]:
    """Read a network that `save_network` wrote; in evaluation mode.

    Args:
        kind: the class that is expected, or a base of it.

    Returns:
        The network and the class names.

    Raises:
        ArtifactError: not a checkpoint of ours, damaged, or of another kind of network.
    """
    tensors, header = load_checkpoint(path)
    spec, classes, normalisation = _read_header(header, path)
    if not issubclass(spec.kind, kind):
        raise ArtifactError(
            f"checkpoint '{path}' holds a network of class {spec.kind.__name__}, expected "
            f"{kind.__name__}: run the stage again that writes it"
        )
    try:
        network = spec.build()
    except (ConfigError, TypeError, ValueError, RuntimeError) as error:  # refused by the class
        raise ArtifactError(
            f"checkpoint '{path}' has a damaged header: {one_line(error)}"
        ) from None
    load_into(network, tensors, path)
    network.backbone.normalisation = normalisation
    assert isinstance(network, kind)
    return network.to(device).eval(), classes


def _read_header(
    header: dict[str, Any], path: Path
) -> tuple[NetworkSpec, tuple[str, ...], Normalisation]:
    try:
        if "architecture" in header:
            spec = _read_old(header["architecture"])
        else:
            spec = _read_spec(header["network"], str(header.get("wsss")))
        classes = tuple(header["classes"])
        if not all(isinstance(name, str) for name in classes):
            raise TypeError("classes are no texts")
        normalisation = Normalisation.from_dict(header["normalisation"])
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"checkpoint '{path}' has a damaged header: {one_line(error)}"
        ) from None
    except _UnknownClassError as error:
        raise ArtifactError(f"checkpoint '{path}' {error}") from None
    if spec.arguments.get("num_classes", len(classes)) != len(classes) or len(classes) > 254:
        raise ArtifactError(f"checkpoint '{path}': class list and network do not fit")
    return spec, classes, normalisation


class _UnknownClassError(Exception):
    """What is wrong, as the rest of a sentence that begins with the checkpoint."""


def _read_spec(values: Mapping[str, Any], version: str) -> NetworkSpec:
    """A spec from the header of a checkpoint; its values are a stranger's."""
    name, arguments = values["class"], values["arguments"]
    if not isinstance(arguments, dict):
        raise TypeError(f"arguments are {short_repr(arguments)}")
    kinds = (each for each in _subclasses(Network) if each.read is not Network.read)
    kind = next((each for each in kinds if each.__name__ == name), None)
    if kind is None:
        raise _UnknownClassError(
            f"holds a network of class {short_repr(name)}, written by wsss {short_repr(version)}, "
            f"which this wsss {__version__} does not have: use the version that wrote it"
        )
    known = {each.name: each.annotation for each in inspect.signature(kind).parameters.values()}
    for key, value in arguments.items():
        fits = type(value) is known.get(key) and type(value) in (bool, int, str)
        if not fits or not (
            value.isprintable() if isinstance(value, str) else 0 <= value <= MAX_ARGUMENT
        ):
            raise TypeError(f"argument {short_repr(key)} is {short_repr(value)}")
    return _checked(NetworkSpec(kind, values["backbone"], values["output_stride"], arguments))


def _read_old(values: Mapping[str, Any]) -> NetworkSpec:
    """A spec from a checkpoint of format 1, which packed all arguments into three fields."""
    old_kind, align = values["kind"], values["align"]
    texts, count = (old_kind, values["head"], align), values["num_classes"]
    are_plain = all(isinstance(text, str) and text.isprintable() for text in texts)
    are_plain = are_plain and align in get_args(Align)
    if not are_plain or type(count) is not int or count < 0:
        raise TypeError(f"architecture is {short_repr(list(values.values()))}")
    kind = next((each for each in _subclasses(Network) if each.old_kind == old_kind), None)
    if not old_kind or kind is None:
        raise TypeError(f"unknown kind of network {short_repr(old_kind)}")
    arguments = kind.old_arguments(values)
    return _checked(NetworkSpec(kind, values["backbone"], values["output_stride"], arguments))


def _checked(spec: NetworkSpec) -> NetworkSpec:
    is_name = isinstance(spec.backbone, str) and spec.backbone.isprintable()
    if not is_name or type(spec.output_stride) is not int:
        raise TypeError(
            f"backbone is {short_repr(spec.backbone)}, {short_repr(spec.output_stride)}"
        )
    return spec


def _subclasses(kind: type[Network]) -> Iterator[type[Network]]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)


def choose_device(name: str) -> torch.device:
    """The device of this process.

    Args:
        name: auto, cpu or cuda.

    Raises:
        ConfigError: cuda asked for and not there, or an unknown name.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"unknown device '{name}': choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError(
            "`device` cuda: this torch finds no CUDA device: install a CUDA build of torch, or "
            "use `device` cpu"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
