"""The networks of the methods, and the backbones that they are built on.

Every network takes a backbone: `CamClassifier(build_backbone("resnet50"), num_classes=20)`.
Like `wsss` itself, this module imports torch when a name is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .training.backbones.build import build_backbone
    from .training.methods.affinitynet.network import AffinityNet
    from .training.methods.cian.network import CianSegmenter
    from .training.methods.irnet.network import IRNet
    from .training.methods.selfguided.network import SelfGuidedNet
    from .training.methods.shared.classifier import CamClassifier
    from .training.methods.shared.segmenter_network import Segmenter

__all__ = [
    "AffinityNet",
    "CamClassifier",
    "CianSegmenter",
    "IRNet",
    "Segmenter",
    "SelfGuidedNet",
    "build_backbone",
]

_HOMES = {
    "AffinityNet": ".training.methods.affinitynet.network",
    "CamClassifier": ".training.methods.shared.classifier",
    "CianSegmenter": ".training.methods.cian.network",
    "IRNet": ".training.methods.irnet.network",
    "Segmenter": ".training.methods.shared.segmenter_network",
    "SelfGuidedNet": ".training.methods.selfguided.network",
    "build_backbone": ".training.backbones.build",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wsss.models' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name], __package__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
