"""Bundles of two graphs with a few nodes and an engine of random bytes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from wsss.runtime.bundle.open import MANIFEST, file_entry, seal

ENGINE = "label.sm90.trt11.4.0.plan"
FILES = ("cam.onnx", "label.onnx", ENGINE)


def tensor_info(
    name: str, shape: Sequence[int | str] | None, dtype: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def array(name: str, values: Any, dtype: type = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto] = (),
    *,
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
) -> onnx.ModelProto:
    """A model of our opset; by default from `x` to `y`, both (n, 3) float32."""
    given = inputs or [tensor_info("x", ["n", 3])]
    result = outputs or [tensor_info("y", ["n", 3])]
    graph = helper.make_graph(nodes, "graph", given, result, list(constants))
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def cam_model() -> onnx.ModelProto:
    """Scores with a weight, and a threshold that has a default."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"], "product"),
        helper.make_node("Max", ["product", "threshold"], ["y"], "maximum"),
    ]
    weight = array("weight", np.arange(9).reshape(3, 3), np.float32)
    inputs = [tensor_info("x", ["n", 3]), tensor_info("threshold", [])]
    return model(nodes, [weight, array("threshold", 0.5, np.float32)], inputs=inputs)


def label_model() -> onnx.ModelProto:
    """uint8 images to a map, with a subgraph and a size that is read from a constant."""
    image = tensor_info("image", ["batch", "height", "width", 3], TensorProto.UINT8)
    labels = tensor_info("labels", ["batch", "height", "width"], TensorProto.UINT8)
    branches = {
        f"{kind}_branch": helper.make_graph(
            [helper.make_node("Identity", [source], [kind])],
            kind,
            [],
            [tensor_info(kind, ["batch", "height", "width"], TensorProto.UINT8)],
        )
        for kind, source in (("then", "lightest"), ("else", "flat"))
    }
    nodes = [
        helper.make_node("ReduceMax", ["image", "axis"], ["lightest"], keepdims=0),
        helper.make_node("Shape", ["lightest"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["flat"], value=array("", [7], np.uint8)),
        helper.make_node("If", ["bright"], ["labels"], **branches),
    ]
    constants = [array("axis", [3]), array("bright", True, np.bool_)]
    return model(nodes, constants, inputs=[image], outputs=[labels])


def spec(name: str, dtype: str, *shape: int | str, is_optional: bool = False) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape), "is_optional": is_optional}


def content(folder: Path) -> dict[str, Any]:
    """What `bundle.json` says of the files in the folder."""
    cam_inputs = [spec("x", "float32", "n", 3), spec("threshold", "float32", is_optional=True)]
    return {
        "schema": 2,
        "wsss": "0.1.0",
        "method": "affinitynet",
        "name": "tiny",
        "classes": ["dog", "Häuser", "犬"],
        "palette": [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]],
        "layout": "nhwc",
        "precision": "fp32",
        "opset": 20,
        "align": "reference",
        "padding": "zeros below and to the right, up to a multiple of 16",
        "strides": {"cam": 8, "affinity": 8},
        "normalisation": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "settings": {"walk": {"beta": 8.0, "radius": 5}, "crf": None},
        "sizes": {"batch": [1, 1, 8], "height": [16, 512, 1024], "width": [16, 512, 1024]},
        "graphs": {
            "cam": {
                "file": "cam.onnx",
                "precision": "fp32",
                "inputs": cam_inputs,
                "outputs": [spec("y", "float32", "n", 3)],
            },
            "label": {
                "file": "label.onnx",
                "precision": "fp32",
                "inputs": [spec("image", "uint8", "batch", "height", "width", 3)],
                "outputs": [spec("labels", "uint8", "batch", "height", "width")],
            },
        },
        "modes": {"walk": {"graph": "label", "settings": "walk", "crf": False}},
        "affinity": {"graph": "affinity", "output": "affinity"},
        "instances": [],
        "engines": [
            {
                "file": ENGINE,
                "graph": "label",
                "tensorrt": "11.4.0",
                "compute_capability": "9.0",
                "gpu": "NVIDIA H100",
                "version_compatible": False,
                "hardware_compatible": False,
            }
        ],
        "files": {file: file_entry(folder / file) for file in FILES},
        "parity": {"labels": {"agree": 0.99998, "images": 20}},
    }


def write_bundle(folder: Path) -> Path:
    """A valid bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cam.onnx").write_bytes(cam_model().SerializeToString())
    (folder / "label.onnx").write_bytes(label_model().SerializeToString())
    (folder / ENGINE).write_bytes(np.random.default_rng(0).bytes(3000))
    write_manifest(folder, content(folder))
    return folder


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """`bundle.json` with a digest that fits, whatever the content."""
    (folder / MANIFEST).write_bytes(seal(content))


def read_manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / MANIFEST).read_text(encoding="ascii")))
