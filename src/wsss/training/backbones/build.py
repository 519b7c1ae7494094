"""Backbones by name."""

from ...errors import ConfigError
from .backbone import Backbone
from .mobilenetv2 import MobileNetV2
from .parameters import mark_new
from .resnet import ResNet50, ResNet101
from .resnet38 import ResNet38
from .small import SmallNet
from .vgg16 import Vgg16

BACKBONES: dict[str, type[Backbone]] = {
    kind.name: kind for kind in (ResNet38, Vgg16, ResNet50, ResNet101, MobileNetV2, SmallNet)
}
"""By name. To add a backbone, write its file and list its class here."""


def output_strides() -> list[int]:
    """Strides that at least one backbone has."""
    return sorted({stride for kind in BACKBONES.values() for stride in kind.output_strides})


def build_backbone(name: str, output_stride: int | None = None) -> Backbone:
    """Build a backbone with random weights; all of its layers can be trained.

    Args:
        name: resnet38, vgg16, resnet50, resnet101, mobilenetv2 or small.
        output_stride: pixels per cell of the last feature map; default: the first of the
            backbone's `output_strides`.

    Returns:
        Backbone: a module from images to named feature maps.

    Raises:
        ConfigError: the name is unknown, or the architecture cannot have this stride.
    """
    if name not in BACKBONES:
        raise ConfigError(f"unknown backbone '{name}': choose one of {', '.join(BACKBONES)}")
    backbone = BACKBONES[name](output_stride)
    mark_new(backbone)
    return backbone
