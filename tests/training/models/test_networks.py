"""Classifier, AffinityNet and segmenter on every backbone, and their checkpoints."""

import math

import pytest
import torch
from backbone_contract import random_image, relative_error
from torch import nn
from torch.nn import functional as F

from wsss.errors import ArtifactError, ConfigError
from wsss.training.backbones.backbone import CAFFE_BGR, IMAGENET, SYMMETRIC
from wsss.training.backbones.build import BACKBONES, build_backbone
from wsss.training.backbones.parameters import parameter_groups
from wsss.training.engine.checkpoint import load_checkpoint, save_checkpoint
from wsss.training.engine.networks import (
    NetworkSpec,
    open_network,
    save_network,
    start_network,
)
from wsss.training.methods.affinitynet.network import AffinityNet
from wsss.training.methods.cian.network import CianSegmenter
from wsss.training.methods.irnet.network import IRNet
from wsss.training.methods.selfguided.network import SelfGuidedNet
from wsss.training.methods.shared.classifier import CamClassifier
from wsss.training.methods.shared.segmenter_network import Segmenter

CPU = torch.device("cpu")
CLASSES = ("cat", "dog", "bird")


def spec(kind, backbone="small", output_stride=8, **arguments):
    counted = {} if kind is AffinityNet else {"num_classes": len(CLASSES)}
    return NetworkSpec(kind, backbone, output_stride, counted | arguments)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_networks_build_without_memory_and_have_their_grids(backbone):
    height, width = 33, 50
    with torch.device("meta"):
        networks = [
            spec(kind, backbone, 16, **head).build()
            for kind, head in (
                (CamClassifier, {}),
                (AffinityNet, {}),
                (Segmenter, {"head": "largefov"}),
                (Segmenter, {"head": "resnet38"}),
            )
        ]
    assert all(tensor.is_meta for network in networks for tensor in network.state_dict().values())
    image = torch.empty(2, 3, height, width, device="meta")
    classifier, affinitynet, *segmenters = networks
    assert classifier(image).shape == (2, 3)
    assert classifier.cam(image).shape == (2, 3, 3, 4)
    stride = affinitynet.feature_stride
    grid = [math.ceil(side / stride) for side in (height, width)]
    assert affinitynet(image).shape == (2, 448, *grid)
    for segmenter in segmenters:
        assert segmenter(image).shape == (2, 4, 3, 4)


def test_unknown_heads_are_refused():
    with pytest.raises(ConfigError, match="unknown segmenter head 'aspp': choose one of largefov"):
        spec(Segmenter, head="aspp").build()


@pytest.mark.parametrize("backbone", ["small", "vgg16"])
@torch.no_grad()
def test_classifier_equals_classifying_every_cell_and_then_averaging(backbone):
    torch.manual_seed(1)
    network = CamClassifier(build_backbone(backbone), 3).eval()
    image = random_image((40, 27))
    weights = network.classifier.weight[:, :, 0, 0]
    cells = torch.einsum("kc,bchw->bkhw", weights, network.features(image))
    assert relative_error(network(image), cells.mean((2, 3))) < 1e-4
    cam = network.cam(image)
    expected = cells.clamp(min=0)
    assert expected.max() > 0
    assert relative_error(cam.square() if backbone == "vgg16" else cam, expected) < 1e-4


@torch.no_grad()
def test_classifier_drops_channels_only_while_training_and_never_in_cams():
    torch.manual_seed(1)
    network = CamClassifier(build_backbone("small"), 3)
    image = random_image((40, 27))
    plain = network.eval()(image), network.cam(image)
    network.train()
    assert not torch.allclose(network(image), plain[0])
    assert torch.equal(network.cam(image), plain[1])


def test_affinitynet_of_the_published_networks():
    with torch.device("meta"):
        wide = AffinityNet(build_backbone("resnet38"))
        vgg = AffinityNet(build_backbone("vgg16"))
    image = torch.empty(1, 3, 448, 448, device="meta")
    for network, inputs, groups in (
        (wide, (512, 1024, 4096), []),
        (vgg, (512, 512, 1024), [8, 16, 32]),
    ):
        assert network.feature_stride == 8
        assert network(image).shape == (1, 448, 56, 56)
        convolutions = [head[0] for head in network.heads]
        assert [layer.in_channels for layer in convolutions] == list(inputs)
        assert [layer.out_channels for layer in convolutions] == [64, 128, 256]
        norms = [part for part in network.heads.modules() if isinstance(part, nn.GroupNorm)]
        assert [norm.num_groups for norm in norms] == groups
        assert network.mix.weight.shape == (448, 448, 1, 1)
    assert vgg.backbone.fc6.dilation == (4, 4)


@pytest.mark.parametrize("align_corners", [True, False])
@torch.no_grad()
def test_coarse_taps_lie_on_the_fine_grid_as_asked(align_corners):
    torch.manual_seed(1)
    network = AffinityNet(build_backbone("small", 16), align_corners=align_corners).eval()
    network.mix.weight.copy_(torch.eye(448)[:, :, None, None])
    # Side 16 k + 1: cell i of stride 16 and cell 4 i of stride 4 are the same pixel.
    image = random_image((65, 49))
    coarse = F.elu(network.heads[2](network.backbone(image)["final"]))
    sampled = network(image)[:, 192:, ::4, ::4]
    agrees = relative_error(sampled, coarse) < 1e-5
    assert agrees == align_corners


def test_segmenter_dilation_shrinks_with_the_grid():
    for output_stride, dilation in ((8, 12), (16, 6), (32, 3)):
        with torch.device("meta"):
            network = Segmenter(build_backbone("small", output_stride), 3)
        assert network.head[0].dilation == (dilation, dilation)
    with torch.device("meta"):
        vgg = Segmenter(build_backbone("vgg16"), 3)
    assert vgg.backbone.fc6.dilation == (12, 12)
    assert [type(layer).__name__ for layer in vgg.head] == ["BatchKeyedDropout2d", "Conv2d"]


@pytest.mark.parametrize("kind", [CamClassifier, AffinityNet, Segmenter])
def test_networks_start_alike_from_a_seed_and_survive_a_checkpoint(tmp_path, kind):
    chosen = spec(kind)
    network = start_network(chosen, seed=4, weights_path=None).eval()
    again = start_network(chosen, seed=4, weights_path=None).eval()
    other = start_network(chosen, seed=5, weights_path=None).eval()
    for each in (network, again, other):
        each.backbone.normalisation = SYMMETRIC
    path = tmp_path / "weights.safetensors"
    save_network(path, network, chosen, CLASSES, "affinitynet")
    assert load_checkpoint(path)[1]["network"] == chosen.to_header()
    opened, classes = open_network(kind, path, CPU)
    assert type(opened) is kind and classes == CLASSES
    assert opened.backbone.normalisation == SYMMETRIC
    assert not opened.training
    image = random_image((33, 40))
    with torch.no_grad():
        expected = network(image)
        assert torch.equal(again(image), expected)
        assert torch.equal(opened(image), expected)
        assert not torch.equal(other(image), expected)


@pytest.mark.parametrize("source", ["classifier_path", "weights_path"])
def test_a_backbone_taken_over_is_no_longer_new(tmp_path, source):
    classifier = start_network(spec(CamClassifier), seed=1, weights_path=None)
    classifier.backbone.normalisation = SYMMETRIC
    path = tmp_path / "weights.safetensors"
    save_network(path, classifier, spec(CamClassifier), CLASSES, "affinitynet")
    paths = {"weights_path": None, source: path}
    # Another output stride: the weights are the same.
    network = start_network(spec(Segmenter, output_stride=16), seed=2, **paths)
    for name, value in classifier.backbone.state_dict().items():
        assert torch.equal(network.backbone.state_dict()[name], value)
    assert network.backbone.normalisation == SYMMETRIC
    groups = parameter_groups(network)
    pretrained = groups["pretrained_weights"] + groups["pretrained_biases"]
    new = groups["new_weights"] + groups["new_biases"]
    assert set(map(id, pretrained)) == set(map(id, network.backbone.parameters()))
    assert set(map(id, new)) == set(map(id, network.head.parameters()))


def test_damaged_checkpoints_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    network = start_network(spec(CamClassifier), seed=1, weights_path=None)
    save_network(path, network, spec(CamClassifier), CLASSES, "affinitynet")
    tensors, header = load_checkpoint(path)
    faults = {
        "damaged header": (tensors, {**header, "network": {"class": "CamClassifier"}}),
        "of class 'Other'": (
            tensors,
            {**header, "network": {**header["network"], "class": "Other"}},
        ),
        "damaged header: 'normalisation'": (
            tensors,
            {key: value for key, value in header.items() if key != "normalisation"},
        ),
        "normalisation is 7": (tensors, {**header, "normalisation": 7}),
        "do not fit": (tensors, {**header, "classes": ["cat"]}),
        "lacks tensor 'classifier.weight'": (
            {name: value for name, value in tensors.items() if name != "classifier.weight"},
            header,
        ),
        "which no layer takes": (tensors | {"extra": torch.ones(1)}, header),
    }
    for message, (changed, changed_header) in faults.items():
        save_checkpoint(
            path, changed, {k: v for k, v in changed_header.items() if k != "format_version"}
        )
        with pytest.raises(ArtifactError, match=message):
            open_network(CamClassifier, path, CPU)


NETWORKS = [
    (CamClassifier, {"num_classes": 3}),
    (AffinityNet, {}),
    (IRNet, {}),
    (Segmenter, {"num_classes": 3}),
    (CianSegmenter, {"num_classes": 3, "channels": 8}),
    (SelfGuidedNet, {"num_classes": 3, "head": "dilated"}),
]


@pytest.mark.parametrize(("kind", "arguments"), NETWORKS)
@pytest.mark.parametrize("rule", [IMAGENET, CAFFE_BGR])
@torch.no_grad()
def test_networks_take_raw_pixels(kind, arguments, rule):
    """Of bytes or floats, and equally under autocast: normalisation is theirs, in float32."""
    network = start_network(NetworkSpec(kind, "small", 8, arguments), seed=1, weights_path=None)
    network.backbone.normalisation = rule
    network.eval()
    pixels = torch.randint(0, 256, (2, 3, 33, 40), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (rule.mean, rule.std))
    ordered = pixels if rule.channel_order == "rgb" else pixels[:, [2, 1, 0]]
    normalised = (ordered.float() * rule.scale - mean) / std
    assert torch.equal(network.backbone.normaliser(pixels), normalised)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.backbone.normaliser(pixels), normalised)
    expected = network.read(network.backbone.forward_normalised(normalised))
    assert_equal(network(pixels), expected)
    assert_equal(network(pixels.float()), expected)


def assert_equal(found, expected):
    if not isinstance(expected, dict):
        found, expected = {"": found}, {"": expected}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values)


@pytest.mark.parametrize(("kind", "arguments"), NETWORKS)
@torch.no_grad()
def test_pixels_outside_of_an_image_have_the_mean_colour(kind, arguments):
    network = start_network(NetworkSpec(kind, "small", 8, arguments), seed=1, weights_path=None)
    network.eval()
    pixels, inside = random_image((33, 40), batch=2), torch.ones(2, 1, 33, 40, dtype=torch.bool)
    inside[0, :, :, 30:] = False
    inside[1, :, :5] = False
    zeros = network.backbone.normaliser(pixels)
    zeros[0, :, :, 30:] = 0
    zeros[1, :, :5] = 0
    expected = network.read(network.backbone.forward_normalised(zeros))
    assert_equal(network(pixels, inside), expected)


def test_the_rule_is_replaced_as_a_whole_and_saved_with_no_tensors():
    network = start_network(spec(CamClassifier), seed=1, weights_path=None)
    names = set(network.state_dict())
    network.backbone.normalisation = SYMMETRIC
    pixels = torch.tensor([0.0, 127.5, 255.0]).view(1, 3, 1, 1)
    assert network.backbone.normaliser(pixels).flatten().tolist() == [-1, 0, 1]
    assert set(network.state_dict()) == names
    assert not [name for name in names if "normaliser" in name]
