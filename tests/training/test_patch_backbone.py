"""A backbone with one grid of stride 14: from its registration to labels from a bundle."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from backbone_contract import BackboneContract
from patch_backbone import PATCH, registered
from tiny_run import CLASSES, tiny_recipe

from wsss.errors import ConfigError
from wsss.runtime.io.image_io import read_image
from wsss.training.backbones.backbone import IMAGENET
from wsss.training.backbones.build import BACKBONES, build_backbone
from wsss.training.data.image_set import ImageSet
from wsss.training.engine.networks import NetworkSpec, open_network
from wsss.training.methods.affinitynet.network import AffinityNet
from wsss.training.methods.cian.network import CianSegmenter
from wsss.training.methods.irnet.network import IRNet
from wsss.training.methods.selfguided.network import SelfGuidedNet
from wsss.training.methods.shared.segmenter_network import Segmenter
from wsss.training.pipeline import train
from wsss.training.predict.run_predictor import RunPredictor

SIDE = {"reference": 3 * PATCH, "corners": 3 * PATCH + 1}
"""Of crops, in pixels."""


@pytest.fixture(autouse=True, scope="module")
def patch_backbone() -> Iterator[None]:
    with registered():
        yield


class TestPatchNet(BackboneContract):
    name = "patch14"
    strides = (PATCH,)
    taps = (("first", 32, PATCH), ("second", 32, PATCH), ("third", 32, PATCH))
    normalisation = IMAGENET
    num_stored = 32 * (3 * PATCH**2 + 1) + 3 * 32 * (32 * 9 + 1 + 2)


def settings(align: str, method: str = "affinitynet") -> list[str]:
    stages = {"affinitynet": ("cam", "affinity", "segmenter"), "irnet": ("cam", "irnet")}[method]
    crops = [f"{stage}.train.augmentation.crop_size={SIDE[align]}" for stage in stages]
    strides = [f"backbone.output_stride={PATCH}", "cam.map_stride=7", "segmenter.label_stride=7"]
    return ["backbone.name=patch14", f"cam.align={align}", *strides, *crops]


@pytest.fixture(scope="module", params=["reference", "corners"])
def run(
    request: pytest.FixtureRequest, tiny_images: ImageSet, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run of AffinityNet under both alignments."""
    recipe = tiny_recipe(*settings(request.param))
    folder = tmp_path_factory.mktemp("patches") / "run"
    train(recipe, tiny_images, folder, device="cpu")
    return folder


def test_it_trains(run: Path) -> None:
    network, classes = open_network(
        AffinityNet, run / "affinity" / "weights.safetensors", torch.device("cpu")
    )
    assert (network.backbone.name, network.feature_stride, classes) == ("patch14", PATCH, CLASSES)
    assert len(list((run / "labels").glob("*.png"))) == 10


def test_its_bundle_labels_as_the_run_does(
    run: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    from wsss.export.bundle import ExportSettings, export_run
    from wsss.runtime.bundle.predictor import BundlePredictor

    bundle = export_run(run, tmp_path / "bundle", ExportSettings()).bundle  # measures each graph
    assert bundle.parity["graphs"]["label"]["labels_equal"] >= 0.999
    predictor = RunPredictor(run, "cpu")
    labeller = BundlePredictor(bundle.folder)
    for sample in tiny_images.samples[:3]:
        image, present = read_image(sample.image_path), sample.labels or ()
        found = labeller.predict_one(image, present, "walk").label
        expected = predictor.predict_one(image, present, "walk", crf=False).label
        assert (found == expected).mean() >= 0.999
    labeller.close()


def test_irnet_refuses_it_before_anything_is_trained(tiny_images: ImageSet, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        *settings("corners", "irnet"), "segmenter.train.augmentation.crop_size=43", method="irnet"
    )
    message = "backbone `patch14` has no boundary taps of strides 4 and 8, which IRNet reads"
    with pytest.raises(ConfigError, match=message):
        train(recipe, tiny_images, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_other_networks_take_its_one_grid() -> None:
    pixels = torch.rand(2, 3, 43, 60) * 255
    for kind, arguments in (
        (Segmenter, {"num_classes": 2, "head": "largefov"}),
        (CianSegmenter, {"num_classes": 2, "channels": 8}),
        (SelfGuidedNet, {"num_classes": 2, "head": "dilated"}),
    ):
        network = NetworkSpec(kind, "patch14", PATCH, arguments).build().eval()
        assert network(pixels).shape == (2, 3, 4, 5)
    dilations = {part.dilation for part in network.head if hasattr(part, "dilation")}
    assert dilations == {(7, 7)}  # 12 at stride 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["backbone.output_stride=8"], "backbone.output_stride is 8, must be 14 for backbone"),
        (["affinity.output_stride=16"], "affinity.output_stride is 16, must be 14 for backbone"),
        (["affinity.output_stride=12"], "affinity.output_stride is 12, must be 8, 14, 16 or 32"),
        (["cam.train.augmentation.crop_size=33"], "must be k \\* 14 \\+ 1 .* for example 29"),
        (["segmenter.label_stride=4"], "segmenter.label_stride is 4, must divide 42"),
        (["backbone.name=patch16"], "is 'patch16', must be 'resnet38', .* or 'patch14'"),
        (["backbone.name=resnet50"], "output_stride is 14, must be 8, 16 or 32 for"),
    ],
)  # fmt: skip
def test_recipes_know_its_stride(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_recipe(*settings("corners"), *changes)


def test_it_cannot_be_built_with_a_stride_that_it_lacks() -> None:
    assert BACKBONES["patch14"].output_strides == (PATCH,)
    with pytest.raises(ConfigError, match="`patch14` has no output stride 8: choose of 14"):
        build_backbone("patch14", 8)


def test_irnet_takes_every_backbone_with_boundary_taps() -> None:
    for name, kind in BACKBONES.items():
        with torch.device("meta"):
            backbone = build_backbone(name)
            if kind.boundary_taps:
                assert IRNet(backbone).feature_stride == 4
            else:
                with pytest.raises(ConfigError, match=f"backbone `{name}` has no boundary taps"):
                    IRNet(backbone)
