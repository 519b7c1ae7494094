"""Backbones by name."""

from collections.abc import Callable

from ...errors import ConfigError
from .backbone import Backbone
from .mobilenetv2 import MobileNetV2
from .parameters import mark_new
from .resnet import ResNet50, ResNet101
from .resnet38 import ResNet38
from .small import SmallNet
from .vgg16 import Vgg16

BACKBONES: dict[str, Callable[[int | None], Backbone]] = {
    "resnet38": ResNet38,
    "vgg16": Vgg16,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "mobilenetv2": MobileNetV2,
    "small": SmallNet,
}


def build_backbone(name: str, output_stride: int | None = None) -> Backbone:
    """Build a backbone with random weights; all of its layers can be trained.

    Args:
        name: resnet38, vgg16, resnet50, resnet101, mobilenetv2 or small.
        output_stride: pixels per cell of the last feature map; None is the default of the
            architecture (8 for ResNet38, VGG16 and the small network, 16 for the others).

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
