"""What a bundle's graphs may not do when they are applied: change, or give no labels."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_bundles import array, content, model, tensor_info, write_bundle, write_manifest

from wsss.errors import ArtifactError
from wsss.runtime.bundle.predictor import BundlePredictor

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

SCORES = ("confidence", "scores")
IMAGE = np.full((6, 5, 3), 2, np.uint8)


def graph_of(axes: list[int], outputs: tuple[str, ...] = SCORES) -> onnx.ModelProto:
    """A segmenter whose label is the brightest value of the image over these axes."""
    nodes = [
        helper.make_node("ReduceMax", ["image", "axes"], ["label"], keepdims=0),
        *(helper.make_node("Cast", ["label"], [name], to=TensorProto.FLOAT) for name in outputs),
    ]
    image = tensor_info("image", ["batch", "height", "width", 3], TensorProto.UINT8)
    shape = [f"axis_{place}" for place in range(4 - len(axes))]
    declared = [tensor_info("label", shape, TensorProto.UINT8)]
    declared += [tensor_info(name, shape) for name in outputs]
    return model(nodes, [array("axes", axes)], inputs=[image], outputs=declared)


def bundle_of(folder: Path, graph: onnx.ModelProto) -> Path:
    """A valid bundle with this segmenter."""
    write_bundle(folder)
    (folder / "label.onnx").write_bytes(graph.SerializeToString())
    manifest = content(folder)
    entry = manifest["graphs"].pop("label")
    entry["outputs"] = [
        {
            "name": value.name,
            "dtype": "uint8" if value.name == "label" else "float32",
            "shape": [axis.dim_param for axis in value.type.tensor_type.shape.dim],
            "is_optional": False,
        }
        for value in graph.graph.output
    ]
    manifest["graphs"]["segmenter"] = entry
    segmenter = {"graph": "segmenter", "settings": "segmenter", "crf": False}
    manifest["modes"] = {"segmenter": segmenter}
    manifest["engines"] = []
    del manifest["files"]["label.sm90.trt11.4.0.plan"]
    write_manifest(folder, manifest)
    return folder


def graph_with_change(divisor: float) -> onnx.ModelProto:
    """A segmenter that gives the brightest value of each image, divided, as its change."""
    graph = graph_of([3])
    graph.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["scores", "rest"], ["brightest"], keepdims=0),
            helper.make_node("Div", ["brightest", "divisor"], ["change"]),
        ]
    )
    graph.graph.initializer.extend([array("rest", [1, 2]), array("divisor", divisor, np.float32)])
    graph.graph.output.append(tensor_info("change", ["axis_0"]))
    return graph


def labels_of(folder: Path, image: np.ndarray = IMAGE) -> np.ndarray:
    return BundlePredictor(folder, device="cpu").predict_one(image, mode="segmenter").label


def test_labels_of_the_image_pass(tmp_path: Path) -> None:
    assert (labels_of(bundle_of(tmp_path, graph_of([3]))) == 2).all()


def test_labels_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gave labels uint8 \(1, 6\) up to 2, expected uint8"):
        labels_of(bundle_of(tmp_path / "rank", graph_of([2, 3])))
    folder = bundle_of(tmp_path / "value", graph_of([3]))
    with pytest.raises(ArtifactError, match=r"\(1, 6, 5\) up to 4, expected .* up to 3"):
        labels_of(folder, IMAGE + 2)


def test_a_change_that_is_no_share_is_refused(tmp_path: Path) -> None:
    images = [IMAGE, IMAGE - 2]

    def changes(divisor: float) -> list[float | None]:
        folder = bundle_of(tmp_path / str(divisor), graph_with_change(divisor))
        predictor = BundlePredictor(folder, device="cpu")
        return [each.change for each in predictor.predict(images, mode="segmenter")]

    assert changes(2) == [1, 0] and changes(8) == [0.25, 0]
    for divisor, told in ((1, "2.0, 0.0"), (-2, "-1.0, -0.0"), (0, "inf, nan")):
        with pytest.raises(ArtifactError, match=rf"gave \[{told}\] as `change`, expected 2 shar"):
            changes(divisor)


def test_a_bundle_that_tells_no_change(tmp_path: Path) -> None:
    predictor = BundlePredictor(bundle_of(tmp_path, graph_of([3])), device="cpu")
    assert predictor.predict_one(IMAGE, mode="segmenter").change is None


def test_outputs_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = bundle_of(tmp_path, graph_of([3], ("scores",)))
    with pytest.raises(
        ArtifactError, match=r"'segmenter' of .* gives label, scores, expected conf"
    ):
        labels_of(folder)


def test_a_graph_exchanged_after_the_check_is_refused(tmp_path: Path) -> None:
    folder = bundle_of(tmp_path / "bundle", graph_of([3]))
    other = bundle_of(tmp_path / "other", graph_of([-1]))
    predictor = BundlePredictor(folder, device="cpu")
    shutil.copyfile(other / "label.onnx", folder / "label.onnx")
    with pytest.raises(ArtifactError, match=r"label\.onnx' (is damaged|has \d+ bytes)"):
        predictor.predict_one(IMAGE, mode="segmenter")
