"""IRNet on the classifier's MobileNetV2: the trunk that they share is computed once in `label`."""

import numpy as np
import onnx
import pytest
from torch import nn
from untrained_run import share_backbone, write_untrained_run

from wsss.export.graphs import models as graphs
from wsss.export.source import ExportSource, open_source
from wsss.runtime.bundle.inputs import present_input
from wsss.training.demo.scenes import draw_scene
from wsss.training.methods.irnet.network import IRNet
from wsss.training.recipes import load_recipe

pytestmark = pytest.mark.slow
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'wsss[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")

SETTINGS = (
    "cam.scales=[1.0, 0.5]",
    "cam.train.augmentation.crop_size=65",
    "walk.steps=8",
    "walk.beta=4",
    "walk.threshold=0.35",
)
SIZES = ((2, (97, 129)), (1, (113, 74)), (1, (240, 320)))
"""Batch and (height, width)."""


@pytest.fixture(scope="module")
def sources(
    tmp_path_factory: pytest.TempPathFactory, networks_traced_once: None
) -> dict[str, ExportSource]:
    """Runs whose backbones are equal, and the same classifier beside a foreign backbone."""
    cases = {
        "unlike": (),
        "equal": (),
        "padded": ('cam.align="reference"',),
        "upright": ("cam.flip=false",),
    }
    made = {}
    for name, changes in cases.items():
        recipe = load_recipe("irnet_mobilenetv2", (*SETTINGS, *changes))
        assert (recipe.cam.align == "corners") == (name != "padded")
        run = write_untrained_run(tmp_path_factory.mktemp(name) / "run", recipe)
        if name != "unlike":
            share_backbone(run)
        made[name] = open_source(run, ("label",), "nhwc")
    return made


def label_model(source: ExportSource) -> onnx.ModelProto:
    return graphs.label_model(source.networks["cam"], source.networks["irnet"], source.settings)


def num_convolutions(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Conv" for node in model.graph.node)


def num_in_trunk(source: ExportSource) -> int:
    backbone = source.predictor.network("irnet", IRNet).backbone
    return sum(isinstance(layer, nn.Conv2d) for layer in backbone.modules())


def alone(source: ExportSource) -> tuple[int, int]:
    """Convolutions of the CAMs by themselves, and of the boundaries by themselves."""
    cam = graphs.cam_model(source.networks["cam"], source.settings)
    both = graphs.affinity_model(source.networks["irnet"], source.settings)
    layers = source.predictor.network("irnet", IRNet).displacement
    assert layers is not None
    displacement = sum(isinstance(layer, nn.Conv2d) for layer in layers.modules())
    return num_convolutions(cam), num_convolutions(both) - displacement


def test_the_whole_trunk_is_computed_once(sources: dict[str, ExportSource]) -> None:
    source = sources["equal"]
    cam, boundary = alone(source)
    trunk = num_in_trunk(source)
    assert trunk > 50
    # Three passes of the classifier: two scales, and the square by which it finds classes.
    assert cam >= 3 * trunk and boundary > trunk
    assert num_convolutions(label_model(source)) == cam + boundary - trunk


def test_unlike_trunks_stay_apart(sources: dict[str, ExportSource]) -> None:
    source = sources["unlike"]
    assert num_convolutions(label_model(source)) == sum(alone(source))


@pytest.mark.parametrize("name", ["padded", "upright"])
def test_equal_trunks_with_unlike_inputs_stay_apart(
    name: str, sources: dict[str, ExportSource]
) -> None:
    """Under `reference` IRNet's image is padded, the CAM's is not; and IRNet takes mirrors."""
    source = sources[name]
    assert num_convolutions(label_model(source)) == sum(alone(source))


def test_labels_are_the_same_either_way(
    sources: dict[str, ExportSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources["equal"]
    shared = label_model(source)
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "merge_equal", lambda nodes, constants, outputs: (nodes, constants))
        apart = label_model(source)
    assert num_convolutions(apart) == sum(alone(source))
    generator = np.random.default_rng(0)
    seen = set()
    for batch, size in SIZES:
        images = np.stack([draw_scene(generator, size, index).image for index in range(batch)])
        inputs = {"image": images, "present": present_input([(0, 1, 2)] * batch, 3)}
        found, expected = (
            onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)
            for model in (shared, apart)
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        seen |= set(np.unique(found[0]))
    assert len(seen) > 2
