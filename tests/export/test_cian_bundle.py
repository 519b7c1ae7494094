"""A bundle of CIAN: its segmenter is the self branch alone, and labels as the run does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command_line import wsss
from torch import nn
from untrained_run import write_untrained_run

from wsss.errors import ConfigError
from wsss.export.bundle import ExportSettings, export_run
from wsss.export.precision import Precision
from wsss.runtime.bundle.open import open_bundle
from wsss.runtime.bundle.predictor import BundlePredictor
from wsss.runtime.io.image_io import read_image, read_label_map
from wsss.training.data.image_set import ImageSet, Sample
from wsss.training.engine.checkpoint import load_checkpoint, save_checkpoint
from wsss.training.methods.cian.network import EXPORTED_PARTS
from wsss.training.predict.run_predictor import RunPredictor
from wsss.training.recipes import load_recipe

pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'wsss[export]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

pytestmark = pytest.mark.usefixtures("networks_traced_once")


MEMORY_OF_AFFINITIES = """
import resource, numpy, onnxruntime, torch
from wsss.training.data.image_set import ImageSet, Sample
from wsss.training.methods.cian.network import CrossImageAffinity
sizes = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}
program = torch.onnx.export(
    CrossImageAffinity(16, 8).eval(), (torch.zeros(2, 16, 12, 18),), dynamo=True,
    opset_version=18, dynamic_shapes=(sizes,), verbose=False,
)
session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
(pixels,) = session.get_inputs()
def peak(side):
    session.run(None, {pixels.name: numpy.ones((1, 16, side, side), numpy.float32)})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak(16)
print(peak(128) - before)
"""
"""MiB that one image adds to what the process has held before."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained, but with an affinity module that adds to the features what it gathers."""
    recipe = load_recipe(
        "demo_cian", ["cam.scales=[1.0]", "cam.train.augmentation.crop_size=65", "cian.channels=8"]
    )
    folder = write_untrained_run(tmp_path_factory.mktemp("cian") / "run", recipe)
    path = folder / "segmenter" / "weights.safetensors"
    tensors, header = load_checkpoint(path)
    torch.manual_seed(1)
    for name in ("query", "key", "value", "out", "norm"):
        nn.init.normal_(tensors[f"affinity.{name}.weight"], std=0.3)
    nn.init.normal_(tensors["head.0.weight"], std=0.3)
    save_checkpoint(path, tensors, header)
    return folder


def test_a_bundle_has_the_classifier_and_the_second_round(exported: Path) -> None:
    opened = open_bundle(exported)
    assert opened.method == "cian"
    assert set(opened.graphs) == {"cam", "segmenter"}


def test_bundle_and_run_label_alike(run: Path, exported: Path, photos: Path) -> None:
    by_bundle, by_run = BundlePredictor(exported), RunPredictor(run, "cpu")
    kinds = set()
    for path in sorted(photos.iterdir()):
        image = read_image(path)
        # Odd and even parts: keys are pooled with stride 2.
        for part in (image, image[:96, :128], image[:67, :93], image[:33, :40]):
            part = np.ascontiguousarray(part)
            expected = by_run.predict_one(part).label
            found = by_bundle.predict_one(part, mode="segmenter").label
            assert found.shape == part.shape[:2] and (found == expected).mean() >= 0.999
            kinds |= set(np.unique(expected).tolist())
    assert len(kinds) > 1


def test_images_that_share_a_batch_do_not_change_each_other(exported: Path, photos: Path) -> None:
    predictor = BundlePredictor(exported)
    images = [read_image(path)[:96, :96] for path in sorted(photos.iterdir())]
    together = predictor.predict(images, mode="segmenter")
    for image, found in zip(images, together, strict=True):
        alone = predictor.predict_one(image, mode="segmenter")
        assert (found.label == alone.label).mean() >= 0.9999


def test_jobs_by_run_and_by_bundle(run: Path, exported: Path, photos: Path, tmp_path: Path) -> None:
    for model, out in ((exported, tmp_path / "by_bundle"), (run, tmp_path / "by_run")):
        wsss("label", photos, "--model", model, "--out", out).succeeded()
    for path in sorted(photos.iterdir()):
        one, two = (
            read_label_map(tmp_path / way / "masks" / f"{path.stem}.png")
            for way in ("by_bundle", "by_run")
        )
        assert (one == two).mean() >= 0.999


def test_there_is_no_walk_to_label_by(run: Path, exported: Path, photos: Path) -> None:
    image = read_image(next(photos.iterdir()))
    with pytest.raises(ConfigError, match=r"unknown mode .*: run .* has segmenter, cam"):
        RunPredictor(run, "cpu").predict_one(image, mode="labels")
    with pytest.raises(ConfigError, match=r"unknown mode 'walk': bundle '.*' has segmenter"):
        BundlePredictor(exported).predict_one(image, mode="walk")


def test_labels_that_it_cannot_use_are_refused(
    exported: Path, photos: Path, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,labels\nscene,square\n")
    given = ("--model", exported, "--out", tmp_path / "out", "--labels", table)
    line = wsss("label", photos, *given).line()
    assert "its segmenter takes no image-level classes: leave them out" in line


def test_affinities_are_computed_in_parts() -> None:
    """Of 128 x 128 cells they would take 256 MiB, and as much again behind the softmax."""
    finished = subprocess.run(
        [sys.executable, "-c", MEMORY_OF_AFFINITIES], capture_output=True, text=True, check=True
    )
    assert float(finished.stdout) < 64


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_affinities_stay_in_float32(
    run: Path, photos: Path, tmp_path: Path, precision: Precision
) -> None:
    """Nothing divides their products: half precision would round them in front of the softmax."""
    settings = ExportSettings(precision=precision, names=("segmenter",), force=True)
    classes = RunPredictor(run, "cpu").classes
    samples = tuple(Sample(path.stem, path, ()) for path in sorted(photos.iterdir()))
    images = ImageSet(photos, "drawn", classes, samples)
    export_run(run, tmp_path / "bundle", settings, images=images)
    graph = onnx.load(tmp_path / "bundle" / "segmenter.onnx").graph
    made_by = {name: node for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    num_scales = len(load_recipe(run / "recipe.toml").segmenter.scales)
    assert len(products) == 2 * EXPORTED_PARTS * num_scales
    readers = {name: node.op_type for node in graph.node for name in node.input}
    into_softmax = [node for node in products if readers[node.output[0]] == "Softmax"]
    assert len(into_softmax) == EXPORTED_PARTS * num_scales
    for node in products:
        for name in node.input:
            before = made_by[name]
            if precision == "fp16":
                assert before.op_type in ("Cast", "Softmax")
            if before.op_type == "Cast":
                assert onnx.helper.get_node_attr_value(before, "to") == onnx.TensorProto.FLOAT
