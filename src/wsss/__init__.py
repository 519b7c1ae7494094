"""Turn image-level labels into segmentation masks and train a segmentation network on them.

The names in `__all__` are the public interface, together with the networks in `wsss.models` and
the error classes in `wsss.errors`; `docs/api.md` describes them. Everything else is internal and
may change without notice.

Each name imports its module when it is first used, so that `import wsss` is fast and needs neither
torch nor onnx.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import models
    from .errors import WsssError
    from .export.bundle import export
    from .labelling import label_images
    from .opening import open_model
    from .runtime.io.image_io import read_image, write_label_map
    from .runtime.predictor import Prediction, Predictor
    from .runtime.refine.boundary_affinity import affinity_from_boundary
    from .runtime.refine.dense_crf import CrfSettings, DenseCrf
    from .runtime.refine.feature_affinity import affinity_from_features
    from .runtime.refine.random_walk import propagate
    from .runtime.refine.seeds import make_seed
    from .training.data.readers import read_image_set
    from .training.pipeline import train
    from .training.predict.measure import evaluate
    from .training.recipes import load_recipe

__all__ = [
    "CrfSettings",
    "DenseCrf",
    "Prediction",
    "Predictor",
    "WsssError",
    "__version__",
    "affinity_from_boundary",
    "affinity_from_features",
    "evaluate",
    "export",
    "label_images",
    "load_recipe",
    "make_seed",
    "models",
    "open_model",
    "propagate",
    "read_image",
    "read_image_set",
    "train",
    "write_label_map",
]

_HOMES = {
    "CrfSettings": ".runtime.refine.dense_crf",
    "DenseCrf": ".runtime.refine.dense_crf",
    "Prediction": ".runtime.predictor",
    "Predictor": ".runtime.predictor",
    "WsssError": ".errors",
    "affinity_from_boundary": ".runtime.refine.boundary_affinity",
    "affinity_from_features": ".runtime.refine.feature_affinity",
    "evaluate": ".training.predict.measure",
    "export": ".export",
    "label_images": ".labelling",
    "load_recipe": ".training.recipes",
    "make_seed": ".runtime.refine.seeds",
    "models": ".models",
    "open_model": ".opening",
    "propagate": ".runtime.refine.random_walk",
    "read_image": ".runtime.io.image_io",
    "read_image_set": ".training.data.readers",
    "train": ".training.pipeline",
    "write_label_map": ".runtime.io.image_io",
}
"""Module of each name. `models` is a module itself, and `export` a package that can be called.

Importing any `wsss.export.x` binds `wsss.export` to the package, and nothing can prevent that
without breaking `import wsss.export.x as y`. So the name always means the package, in every order
of imports, and calling it exports; see `export/__init__.py`.
"""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wsss' has no attribute '{name}'")
    home = import_module(_HOMES[name], __name__)
    return home if _HOMES[name] == f".{name}" else getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
