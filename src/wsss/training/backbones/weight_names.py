"""How weights from elsewhere name the layers of our backbones."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from .vgg16 import STAGES as VGG16_STAGES

Value = TypeVar("Value")

# Classification layers, which no backbone has, as beginnings of names.
HEADS = {
    "resnet50": ("fc",),
    "resnet101": ("fc",),
    "mobilenetv2": ("classifier",),
    "vgg16": ("classifier", "fc8"),
    "resnet38": ("linear1000", "fc8"),
    "small": (),
}
COUNTER = "num_batches_tracked"
"""Buffer of `nn.BatchNorm2d` that frozen normalisation has no use for."""

_OWN_CHECKPOINT = "backbone."
_WRAPPER = "module."
_MXNET_STATISTICS = {
    "weight": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
}
_MXNET_NAME = re.compile(
    r"(?:arg:|aux:)?(?P<layer>conv1a|bn7|(?:res|bn)\d(?:a|b\d)_branch\w+?)_"
    rf"(?P<statistic>{'|'.join(_MXNET_STATISTICS)})"
)
_MXNET_BLOCK = re.compile(r"(?P<kind>res|bn)(?P<stage>\d)(?P<unit>a|b\d)_(?P<branch>branch\w+)")
_MXNET_HEAD = re.compile(r"(?:arg:|aux:)?linear1000_(weight|bias)")


@dataclass(frozen=True)
class Translated(Generic[Value]):
    """Entries of a file under our names.

    Attributes:
        entries: our name -> (name in the file, value); may hold names that no layer has.
        head: names in the file that belong to the classification head or to other networks.
        duplicates: names in the file of layers that another entry names as well.
    """

    entries: dict[str, tuple[str, Value]]
    head: list[str]
    duplicates: list[str]


def translate(architecture: str, named: Mapping[str, Value]) -> Translated[Value]:
    """Rename the entries of a file for one of our backbones.

    Known are torchvision's names, those of psa for ResNet38 and the thinned VGG16 (equal to
    ours), MXNet's for ResNet38, and checkpoints of ours, of which the backbone is taken.
    """
    heads = tuple(f"{part}." for part in HEADS[architecture])
    is_checkpoint = any(unwrapped(name).startswith(_OWN_CHECKPOINT) for name in named)
    found: Translated[Value] = Translated({}, [], [])
    for name, value in named.items():
        layer = unwrapped(name)
        own = _own_name(architecture, layer.removeprefix(_OWN_CHECKPOINT))
        if name.endswith(f".{COUNTER}"):
            continue
        if own.startswith(heads) or (is_checkpoint and not layer.startswith(_OWN_CHECKPOINT)):
            found.head.append(name)
        elif own in found.entries:
            found.duplicates.append(name)
        else:
            found.entries[own] = (name, value)
    return found


def unwrapped(name: str) -> str:
    """A layer's name without what data-parallel wrappers put before it."""
    return name.removeprefix(_WRAPPER)


def _own_name(architecture: str, name: str) -> str:
    if architecture == "vgg16":
        layer, _, kind = name.rpartition(".")
        return f"{_TORCHVISION_VGG16.get(layer, layer)}.{kind}"
    if architecture == "resnet38":
        return _resnet38_name(name)
    return name


def _torchvision_vgg16() -> dict[str, str]:
    """`features.N` -> `convS_P`: a ReLU follows each convolution and a pool each stage."""
    names = {}
    position = 0
    for stage, widths in enumerate(VGG16_STAGES, 1):
        for index in range(1, len(widths) + 1):
            names[f"features.{position}"] = f"conv{stage}_{index}"
            position += 2
        position += 1
    return names


_TORCHVISION_VGG16 = _torchvision_vgg16()


def _resnet38_name(name: str) -> str:
    if head := _MXNET_HEAD.fullmatch(name):
        return f"linear1000.{head[1]}"
    match = _MXNET_NAME.fullmatch(name)
    if match is None:
        return name
    layer, statistic = match["layer"], _MXNET_STATISTICS[match["statistic"]]
    if block := _MXNET_BLOCK.fullmatch(layer):
        # Unit a of stage s is our `bs`, units b1, b2, ... are `bs_1`, `bs_2`, ...
        unit = "" if block["unit"] == "a" else f"_{block['unit'][1:]}"
        kind = "conv" if block["kind"] == "res" else "bn"
        layer = f"b{block['stage']}{unit}.{kind}_{block['branch']}"
    return f"{layer}.{statistic}"
