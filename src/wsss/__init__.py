"""Image-level labels in, pixel-exact segmentation out.

The names below are the public face; they import what they need when they are first used, so that
`import wsss` costs nothing and `wsss.runtime` works without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .opening import open_model
    from .runtime.io.image_io import read_image, write_label_map
    from .runtime.predictor import Prediction, Predictor
    from .training.data.readers import read_image_set
    from .training.pipeline import train
    from .training.predict.measure import measure
    from .training.recipe.load import load_recipe

__all__ = [
    "Prediction",
    "Predictor",
    "__version__",
    "load_recipe",
    "measure",
    "open_model",
    "read_image",
    "read_image_set",
    "train",
    "write_label_map",
]

_HOMES = {
    "Prediction": ".runtime.predictor",
    "Predictor": ".runtime.predictor",
    "load_recipe": ".training.recipe.load",
    "measure": ".training.predict.measure",
    "open_model": ".opening",
    "read_image": ".runtime.io.image_io",
    "read_image_set": ".training.data.readers",
    "train": ".training.pipeline",
    "write_label_map": ".runtime.io.image_io",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wsss' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
