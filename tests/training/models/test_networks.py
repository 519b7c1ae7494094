"""Classifier, AffinityNet and segmenter on every backbone, and their checkpoints."""

import math

import pytest
import torch
from backbone_contract import random_image, relative_error
from torch import nn
from torch.nn import functional as F

from wsss.errors import ArtifactError, ConfigError
from wsss.training.backbones.backbone import SYMMETRIC
from wsss.training.backbones.build import BACKBONES, build_backbone
from wsss.training.backbones.parameters import parameter_groups
from wsss.training.engine.checkpoint import load_checkpoint, save_checkpoint
from wsss.training.engine.networks import (
    Architecture,
    normalise,
    open_network,
    save_network,
    start_network,
)
from wsss.training.methods.affinitynet.network import AffinityNet
from wsss.training.methods.shared.classifier import CamClassifier
from wsss.training.methods.shared.segmenter_network import Segmenter

CPU = torch.device("cpu")
CLASSES = ("cat", "dog", "bird")


def architecture(kind, backbone="small", output_stride=8, head="largefov", align="reference"):
    num_classes = 0 if kind == "affinitynet" else len(CLASSES)
    return Architecture(kind, backbone, output_stride, num_classes, head, align)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_networks_build_without_memory_and_have_their_grids(backbone):
    height, width = 33, 50
    with torch.device("meta"):
        networks = [
            architecture(kind, backbone, 16, head).build()
            for kind, head in (
                ("classifier", ""),
                ("affinitynet", ""),
                ("segmenter", "largefov"),
                ("segmenter", "resnet38"),
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


def test_unknown_kinds_and_heads_are_refused():
    with pytest.raises(ArtifactError, match="unknown kind of network 'other'"):
        architecture("other").build()
    with pytest.raises(ConfigError, match="unknown segmenter head 'aspp': choose one of largefov"):
        architecture("segmenter", head="aspp").build()


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


@pytest.mark.parametrize("kind", ["classifier", "affinitynet", "segmenter"])
def test_networks_start_alike_from_a_seed_and_survive_a_checkpoint(tmp_path, kind):
    chosen = architecture(kind)
    network = start_network(chosen, seed=4, weights_path=None).eval()
    again = start_network(chosen, seed=4, weights_path=None).eval()
    other = start_network(chosen, seed=5, weights_path=None).eval()
    network.backbone.normalisation = SYMMETRIC
    path = tmp_path / "weights.safetensors"
    save_network(path, network, chosen, CLASSES, "affinitynet")
    opened, architecture_found, classes = open_network(path, CPU)
    assert (architecture_found, classes) == (chosen, CLASSES)
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
    classifier = start_network(architecture("classifier"), seed=1, weights_path=None)
    classifier.backbone.normalisation = SYMMETRIC
    path = tmp_path / "weights.safetensors"
    save_network(path, classifier, architecture("classifier"), CLASSES, "affinitynet")
    paths = {"weights_path": None, source: path}
    # Another output stride: the weights are the same.
    network = start_network(architecture("segmenter", output_stride=16), seed=2, **paths)
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
    network = start_network(architecture("classifier"), seed=1, weights_path=None)
    save_network(path, network, architecture("classifier"), CLASSES, "affinitynet")
    tensors, header = load_checkpoint(path)
    faults = {
        "damaged header": (tensors, {**header, "architecture": {"kind": "classifier"}}),
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
            open_network(path, CPU)


def test_pixels_are_normalised_by_the_backbones_rule():
    network = start_network(architecture("classifier"), seed=1, weights_path=None)
    network.backbone.normalisation = SYMMETRIC
    pixels = torch.tensor([0.0, 127.5, 255.0]).view(1, 3, 1, 1)
    assert normalise(network, pixels).flatten().tolist() == [-1, 0, 1]
