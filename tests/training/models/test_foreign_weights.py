"""Weights of other programs: names, faults, normalisation, and files that must not run code."""

import json
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from published_names import (
    assert_filled,
    constants,
    marked_new,
    mxnet_resnet38,
    save_pth,
    small_weights,
    torchvision_resnet50,
    torchvision_vgg16,
)
from safetensors.torch import load_file, save_file
from torch import nn

from wsss.errors import ArtifactError
from wsss.runtime.io.image_io import read_image
from wsss.training.backbones.backbone import CAFFE_BGR, CAFFE_RGB, IMAGENET, SYMMETRIC
from wsss.training.backbones.build import BACKBONES, build_backbone
from wsss.training.backbones.foreign_weights import load_backbone_weights, translate
from wsss.training.engine.checkpoint import save_checkpoint
from wsss.training.methods.shared.classifier import CamClassifier

SHARED = Path(os.environ.get("WSSS_SHARED", Path(__file__).parents[4] / "shared"))


def test_resnet50_of_torchvision_loads_without_renaming(tmp_path, caplog):
    shapes = torchvision_resnet50()
    learnt = [s for n, s in shapes.items() if "running" not in n and "num_batches" not in n]
    assert sum(torch.Size(shape).numel() for shape in learnt) == 25_557_032
    file = constants(shapes)
    backbone = build_backbone("resnet50")
    with caplog.at_level(logging.INFO):
        load_backbone_weights(backbone, save_pth(tmp_path / "resnet50.pth", file))
    assert_filled(
        backbone,
        {
            name: tensor
            for name, tensor in file.items()
            if not name.startswith("fc.") and "num_batches" not in name
        },
    )
    assert "left out fc.bias, fc.weight" in caplog.text
    assert backbone.normalisation == IMAGENET
    assert not marked_new(backbone)


def test_resnet38_of_mxnet_loads(tmp_path):
    names = mxnet_resnet38()
    with torch.device("meta"):
        expected = build_backbone("resnet38").state_dict()
    assert set(names.values()) == set(expected)
    shapes = {theirs: expected[ours].shape for theirs, ours in names.items()}
    file = constants(shapes)
    prefixed = {
        ("aux:" if "moving" in name else "arg:") + name: value for name, value in file.items()
    }
    prefixed["arg:linear1000_weight"] = torch.ones(1, 1).expand(1000, 4096)
    with torch.device("meta"):
        backbone = build_backbone("resnet38")
    backbone.to_empty(device="cpu")
    load_backbone_weights(backbone, save_pth(tmp_path / "rna.pth", prefixed))
    assert_filled(backbone, {ours: file[theirs] for theirs, ours in names.items()})


def test_resnet38_and_thinned_vgg16_under_our_own_names():
    for name in ("resnet38", "vgg16"):
        with torch.device("meta"):
            state = build_backbone(name).state_dict()
        head = {"fc8.weight": torch.ones(1), "module.fc8.bias": torch.ones(1)}
        translated = translate(
            BACKBONES[name], {f"module.{key}": value for key, value in state.items()} | head
        )
        assert {ours: theirs for ours, (theirs, _) in translated.entries.items()} == {
            key: f"module.{key}" for key in state
        }
        assert translated.head == ["fc8.weight", "module.fc8.bias"]


@pytest.mark.parametrize(
    ("head", "expected"), [("finite", IMAGENET), ("nan", CAFFE_RGB), (None, IMAGENET)]
)
def test_vgg16_of_torchvision_keeps_new_fully_connected_layers(tmp_path, caplog, head, expected):
    file = constants(torchvision_vgg16(head=head is not None))
    if head == "nan":
        file |= {n: t * float("nan") for n, t in file.items() if n == "classifier.6.bias"}
    torch.manual_seed(0)
    backbone = build_backbone("vgg16")
    fully_connected = {n: t.clone() for n, t in backbone.state_dict().items() if n[:2] == "fc"}
    with caplog.at_level(logging.WARNING):
        load_backbone_weights(backbone, save_pth(tmp_path / "vgg16.pth", file))
    convolutions = [name for name in backbone.state_dict() if name not in fully_connected]
    values = [tensor for name, tensor in file.items() if name.startswith("features.")]
    expected_state = dict(zip(convolutions, values, strict=True)) | fully_connected
    assert_filled(backbone, expected_state)
    assert marked_new(backbone) == set(fully_connected)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "fc6 and fc7" in caplog.text
    assert backbone.normalisation == expected


def test_vgg16_under_caffe_names_expects_caffe_pixels(tmp_path):
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in build_backbone("vgg16").state_dict().items()}
    file = constants(shapes)
    backbone = build_backbone("vgg16")
    backbone.normalisation = IMAGENET
    load_backbone_weights(backbone, save_pth(tmp_path / "vgg16_20M.pth", file))
    assert_filled(backbone, file)
    assert backbone.normalisation == CAFFE_BGR
    assert not marked_new(backbone)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_wrapped_and_prefixed_pickles(tmp_path, wrapper):
    weights = small_weights()
    content = {f"module.{name}": value for name, value in weights.items()}
    if wrapper:
        content = {"epoch": 3, wrapper: content}
    backbone = build_backbone("small")
    load_backbone_weights(backbone, save_pth(tmp_path / "small.pt", content))
    assert_filled(backbone, weights)


def test_half_precision_and_old_pickle_format(tmp_path):
    weights = {name: value.half() for name, value in small_weights().items()}
    path = tmp_path / "old.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    backbone = build_backbone("small")
    load_backbone_weights(backbone, path)
    assert_filled(backbone, {name: value.float() for name, value in weights.items()})


class RunsCode:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, zipped):
    path, marker = tmp_path / "bad.pth", tmp_path / "marker"
    content = {**small_weights(), "extra": RunsCode(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ArtifactError, match=r"mkdir`, which could run code: refused") as caught:
        load_backbone_weights(build_backbone("small"), path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_a_bare_pickle_is_refused_and_does_not_run(tmp_path):
    path, marker = tmp_path / "bad.pt", tmp_path / "marker"
    path.write_bytes(pickle.dumps(RunsCode(marker)))
    with pytest.raises(ArtifactError, match=r"bad\.pt'"):
        load_backbone_weights(build_backbone("small"), path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda w: w.pop("stem.1.bias"), r"tensor 'stem\.1\.bias' \(24,\) is missing"),
        (
            lambda w: w.update({"final.1.conv2.weight": torch.ones(96, 96, 1, 1)}),
            r"'final\.1\.conv2\.weight' is \(96, 96, 1, 1\), expected \(96, 96, 3, 3\)",
        ),
        (lambda w: w.update({"neck.bias": torch.ones(2)}), r"no layer takes tensor 'neck\.bias'"),
        (
            lambda w: w["stem.1.bias"].__setitem__(3, float("nan")),
            r"'stem\.1\.bias' holds NaN or infinity",
        ),
        (
            lambda w: w["stem.1.bias"].__setitem__(3, float("inf")),
            r"'stem\.1\.bias' holds NaN or infinity",
        ),
        (
            lambda w: w.update({"stem.1.bias": torch.ones(24, dtype=torch.int32)}),
            r"'stem\.1\.bias' is torch\.strided torch\.int32, expected dense floats",
        ),
        (
            lambda w: w.update({"module.stem.1.bias": torch.ones(24)}),
            r"stem\.1\.bias' is there again under another name",
        ),
    ],
)
def test_misfits_are_named(tmp_path, change, fault):
    weights = small_weights()
    change(weights)
    path = tmp_path / "small.safetensors"
    save_file(weights, path)
    backbone = build_backbone("small")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ArtifactError, match=fault):
        load_backbone_weights(backbone, path)
    assert_filled(backbone, before)
    assert marked_new(backbone)


@pytest.mark.parametrize(
    ("found", "expected", "fault"),
    [
        ("mobilenetv2", "resnet50", r"tensor 'conv1\.weight' \(64, 3, 7, 7\) is missing"),
        ("mobilenetv2", "vgg16", r"tensor 'conv1_1\.weight' \(64, 3, 3, 3\) is missing"),
        ("resnet101", "resnet50", r"no layer takes tensor 'layer3\.6\.conv1\.weight'"),
        ("resnet50", "resnet101", r"tensor 'layer3\.6\.conv1\.weight' .* is missing"),
        ("resnet50", "small", r"tensor 'stem\.0\.weight' \(24, 3, 3, 3\) is missing"),
    ],
)
def test_weights_of_another_architecture_are_recognised(tmp_path, found, expected, fault):
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in build_backbone(found).state_dict().items()}
        backbone = build_backbone(expected)
    path = save_pth(tmp_path / "weights.pth", constants(shapes))
    with pytest.raises(ArtifactError, match=f"backbone `{expected}`: {fault}.*like `{found}`"):
        load_backbone_weights(backbone, path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("absent.pth", None),
        ("weights.bin", b"x"),
        ("empty.pth", b""),
        ("empty.safetensors", b""),
        ("text.pt", b"these are not weights"),
        ("text.safetensors", b"these are not weights, and the length of the header is absurd"),
        ("archive.pth", b"PK\x05\x06" + bytes(18)),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"weights '.*{name}'") as caught:
        load_backbone_weights(build_backbone("small"), path)
    assert "\n" not in str(caught.value)


def test_truncated_files_are_refused(tmp_path):
    whole = [tmp_path / "a.safetensors", tmp_path / "a.pth"]
    save_file(small_weights(), whole[0])
    save_pth(whole[1], small_weights())
    for path in whole:
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(ArtifactError, match=path.name):
            load_backbone_weights(build_backbone("small"), path)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"stem": 3}}, {3: torch.ones(1)}])
def test_pickles_without_a_state_dict_are_refused(tmp_path, content):
    with pytest.raises(ArtifactError, match="expected a"):
        load_backbone_weights(build_backbone("small"), save_pth(tmp_path / "x.pth", content))


def load_with_metadata(tmp_path, metadata):
    path = tmp_path / "small.safetensors"
    save_file(small_weights(), path, metadata)
    backbone = build_backbone("small")
    backbone.normalisation = CAFFE_BGR
    load_backbone_weights(backbone, path)
    return backbone


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, IMAGENET),
        ({"format": "pt"}, IMAGENET),
        ({"input": "RGB, x/127.5-1"}, SYMMETRIC),
        ({"normalisation": json.dumps(CAFFE_RGB.to_dict())}, CAFFE_RGB),
    ],
)
def test_metadata_decides_on_normalisation(tmp_path, metadata, expected):
    assert load_with_metadata(tmp_path, metadata).normalisation == expected


def test_input_that_is_not_understood_is_said(tmp_path, caplog):
    backbone = load_with_metadata(tmp_path, {"input": "raw YUV"})
    assert backbone.normalisation == IMAGENET
    assert "'raw YUV', which is not understood" in caplog.text


@pytest.mark.parametrize(
    "metadata",
    [
        {"normalisation": "[1, 2]"},
        {"normalisation": "{"},
        {"normalisation": "{}"},
        {"batch_norm_eps": "small"},
        {"batch_norm_eps": "0"},
        {"wsss": "{}"},
        {"wsss": "[]"},
    ],
)
def test_damaged_metadata_is_refused(tmp_path, metadata):
    with pytest.raises(ArtifactError):
        load_with_metadata(tmp_path, metadata)


@pytest.mark.parametrize("eps", [1e-3, 1e-6])
def test_foreign_eps_of_batch_norm_is_honoured(tmp_path, eps):
    source = build_backbone("mobilenetv2")
    path = tmp_path / "keras.safetensors"
    generator = torch.Generator().manual_seed(2)
    weights = {
        name: torch.rand(value.shape, generator=generator) * 1e-3
        if "running_var" in name
        else value
        for name, value in source.state_dict().items()
    }
    save_file(weights, path, {"batch_norm_eps": str(eps)})
    backbone = build_backbone("mobilenetv2").eval()
    load_backbone_weights(backbone, path)
    ours = backbone.features[0][1]
    reference = nn.BatchNorm2d(32, eps=eps).eval()
    reference.load_state_dict(
        {n.removeprefix("features.0.1."): t for n, t in weights.items() if "features.0.1." in n},
        strict=False,
    )
    x = torch.randn(1, 32, 4, 4)
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-4, atol=1e-4)


def own_checkpoint(path, backbone, key="network"):
    network = CamClassifier(backbone, 3)
    header = {
        key: {"backbone": backbone.name},
        "normalisation": SYMMETRIC.to_dict(),
    }
    save_checkpoint(path, network.state_dict(), header)
    return network


@pytest.mark.parametrize("key", ["network", "architecture"])
def test_checkpoint_of_ours_gives_its_backbone(tmp_path, caplog, key):
    """In both formats."""
    path = tmp_path / "weights.safetensors"
    network = own_checkpoint(path, build_backbone("small"), key)
    backbone = build_backbone("small")
    with caplog.at_level(logging.INFO):
        load_backbone_weights(backbone, path)
    assert_filled(backbone, dict(network.backbone.state_dict()))
    assert backbone.normalisation == SYMMETRIC
    assert "left out classifier.weight" in caplog.text


def test_checkpoint_of_ours_with_another_backbone(tmp_path):
    path = tmp_path / "weights.safetensors"
    own_checkpoint(path, build_backbone("small"))
    with pytest.raises(ArtifactError, match="holds backbone `small`, expected `mobilenetv2`"):
        load_backbone_weights(build_backbone("mobilenetv2"), path)


# Class of the photograph -> ImageNet classes that mean it.
PHOTOGRAPHS = {
    "msrc_4_8_s": (404, 895, 908),  # airliner, warplane, wing
    "msrc_8_8_s": (444, 671),  # tandem, mountain bike
    "msrc_15_24_s": range(281, 286),  # cats
    "msrc_16_4_s": range(151, 269),  # dogs
    "msrc_12_34_s": range(80, 147),  # birds
    "msrc_7_29_s": (436, 656),  # beach wagon, minivan
}


def test_photographs_are_recognised_by_the_shared_weights():
    path = SHARED / "data/weights/mobilenet_v2_imagenet.safetensors"
    images = SHARED / "data/voc_mini/VOC2012/JPEGImages"
    if not path.is_file() or not images.is_dir():
        pytest.skip(f"no {path} and {images}: set WSSS_SHARED")
    backbone = build_backbone("mobilenetv2", 32).eval()
    load_backbone_weights(backbone, path)
    assert backbone.normalisation == SYMMETRIC
    file = load_file(path)
    for name, classes in PHOTOGRAPHS.items():
        image = torch.from_numpy(read_image(images / f"{name}.jpg")).permute(2, 0, 1)[None]
        top = (image.shape[2] - 193) // 2
        left = (image.shape[3] - 193) // 2
        crop = image[:, :, top : top + 193, left : left + 193]
        with torch.no_grad():
            features = backbone(crop)["features18"].mean((2, 3))
        logits = features @ file["classifier.1.weight"].T + file["classifier.1.bias"]
        assert int(logits.argmax()) in classes, name
