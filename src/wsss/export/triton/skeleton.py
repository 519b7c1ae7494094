"""`triton_models/`: configurations as `wsss export --triton` writes them, without graphs.

`python -m wsss.export.triton.skeleton FOLDER` (`make triton-models`) writes them anew.
"""

import sys
from pathlib import Path

import onnx

from ...runtime.backends.contract import TensorSpec
from ...runtime.bundle.manifest import AffinityEntry
from ...runtime.bundle.open import Bundle, GraphEntry
from ...runtime.io.palette import voc_palette
from ...training.methods import METHODS
from ..graphs.graph_io import graph_tensors
from .options import RepositoryOptions
from .repository import render_configs, write_configs

CLASSES = ("disc", "bar", "ring")
GRAPHS = ("cam", "affinity", "refine", "segmenter", "label")
"""The graphs of a bundle whose affinities come from features."""
NUM_PAIRS = 34
"""Neighbours within the walk radius of 5 that the recipes have, each pair once."""
OPTIONS = RepositoryOptions(decode=True)


def graph_entry(name: str, layout: str, num_classes: int, num_pairs: int) -> GraphEntry:
    """What the manifest of a bundle says of a graph, in float32."""
    role = "features" if name == "affinity" else name
    sides = graph_tensors(role, layout, num_classes, num_pairs)  # type: ignore[arg-type]
    inputs, outputs = (tuple(_spec(value) for value in side) for side in sides)
    return GraphEntry(f"{name}.onnx", "fp32", inputs, outputs)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    return TensorSpec(
        value.name,
        onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
        tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim),
        value.name == "present",
    )


def demo_bundle() -> Bundle:
    """A bundle of three classes that has no files; its digest and version are blank."""
    count = len(CLASSES)
    return Bundle(
        folder=Path("bundle"),
        version="",
        method=METHODS[0],
        name="demo",
        classes=CLASSES,
        palette=tuple((int(r), int(g), int(b)) for r, g, b in voc_palette()[: count + 1]),
        layout="nhwc",
        precision="fp32",
        opset=20,
        align="corners",
        padding="",
        strides={"cam_map": 4, "affinity": 8},
        normalisation={},
        settings={},
        sizes={"batch": (1, 1, 8), "height": (64, 375, 1024), "width": (64, 500, 1024)},
        graphs={name: graph_entry(name, "nhwc", count, NUM_PAIRS) for name in GRAPHS},
        engines=(),
        affinity=AffinityEntry("affinity", "affinity"),
        parity={},
        digest="0" * 64,
    )


def write_skeleton(folder: Path) -> list[str]:
    """Write the configurations into a folder; returns the models."""
    bundle = demo_bundle()
    configs = render_configs(bundle, OPTIONS, {1: bundle.digest})
    write_configs(folder, configs)
    return list(configs)


if __name__ == "__main__":
    write_skeleton(Path(sys.argv[1]))
