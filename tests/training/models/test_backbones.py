"""The contract for each backbone, and their sizes counted by hand."""

import pytest
import torch
from backbone_contract import BackboneContract, DilationContract

from wsss.errors import ConfigError
from wsss.training.backbones.backbone import CAFFE_BGR, IMAGENET
from wsss.training.backbones.build import BACKBONES, build_backbone


def count_resnet38():
    """Weights and statistics from the published table: (blocks, input, middle, output)."""
    total = 3 * 64 * 9
    for blocks, width, middle, output in (
        (3, 64, 128, 128),
        (3, 128, 256, 256),
        (6, 256, 512, 512),
        (3, 512, 512, 1024),
    ):
        total += width * output  # 1x1 shortcut of the first block
        for _ in range(blocks):
            total += 4 * width + 4 * middle
            total += width * middle * 9 + middle * output * 9
            width = output
    for width, narrow, wide, output in ((1024, 512, 1024, 2048), (2048, 1024, 2048, 4096)):
        total += 4 * (width + narrow + wide)
        total += width * narrow + narrow * wide * 9 + wide * output + width * output
    return total + 4 * 4096


def count_vgg16():
    total, width = 0, 3
    for output in (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 1024):
        total += 9 * width * output + output
        width = output
    return total + 1024 * 1024 + 1024


def count_small():
    total = 24 * 3 * 9 + 2 * 24
    width = 24
    for output in (32, 64, 96):
        total += width * output * 9 + 3 * output * output * 9 + 4 * 2 * output
        total += width * output  # 1x1 shortcut of the first block
        width = output
    return total


def statistics(norm_channels):
    """Running means and variances, which published parameter counts leave out."""
    return 2 * sum(norm_channels)


def resnet_norms(blocks):
    yield 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            yield from (width, width, 4 * width)
            if block == 0:
                yield 4 * width


def mobilenet_norms():
    yield 32
    width = 32
    for expansion, output, units in (
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    ):
        for _ in range(units):
            if expansion > 1:
                yield expansion * width
            yield expansion * width
            yield output
            width = output
    yield 1280


class TestResNet38(DilationContract):
    name = "resnet38"
    strides = (8, 16)
    taps = (
        ("conv2", 128, 2),
        ("conv3", 256, 4),
        ("conv4", 512, 8),
        ("conv5", 1024, 16),
        ("conv6", 4096, 16),
    )
    frozen_example = "b2_2.conv_branch2a.weight"
    normalisation = IMAGENET
    num_stored = count_resnet38()


class TestVgg16(DilationContract):
    name = "vgg16"
    strides = (8, 16)
    taps = (
        ("conv2_2", 128, 2),
        ("conv3_3", 256, 4),
        ("conv4_3", 512, 8),
        ("conv5_3", 512, 16),
        ("fc7", 1024, 16),
    )
    frozen_example = "conv2_2.bias"
    normalisation = CAFFE_BGR
    num_stored = count_vgg16()


class TestResNet50(DilationContract):
    name = "resnet50"
    strides = (16, 8, 32)
    taps = (
        ("stem", 64, 4),
        ("layer1", 256, 4),
        ("layer2", 512, 8),
        ("layer3", 1024, 16),
        ("layer4", 2048, 32),
    )
    frozen_example = "layer2.3.conv3.weight"
    normalisation = IMAGENET
    # Published sizes of the classification networks, less their last layer.
    num_stored = 25_557_032 - 2049 * 1000 + statistics(resnet_norms((3, 4, 6, 3)))


class TestResNet101(TestResNet50):
    name = "resnet101"
    num_stored = 44_549_160 - 2049 * 1000 + statistics(resnet_norms((3, 4, 23, 3)))


class TestMobileNetV2(DilationContract):
    name = "mobilenetv2"
    strides = (16, 8, 32)
    taps = (
        ("stride2", 16, 2),
        ("stride4", 24, 4),
        ("stride8", 32, 8),
        ("stride16", 96, 16),
        ("stride32", 320, 32),
        ("features18", 1280, 32),
    )
    frozen_example = "features.3.conv.2.weight"
    normalisation = IMAGENET
    num_stored = 3_504_872 - 1281 * 1000 + statistics(mobilenet_norms())


class TestSmall(BackboneContract):
    name = "small"
    strides = (8, 16, 32)
    taps = (
        ("stem", 24, 2),
        ("stride4", 32, 4),
        ("stride8", 64, 8),
        ("middle", 96, 16),
        ("final", 96, 32),
    )
    normalisation = IMAGENET
    num_stored = count_small()

    def test_stays_small(self):
        assert sum(p.numel() for p in self.meta().parameters()) < 1_000_000


def test_every_backbone_is_under_the_contract():
    tested = {case.name for case in globals().values() if hasattr(case, "num_stored")}
    assert tested - {""} == set(BACKBONES)


@pytest.mark.parametrize("name", ["resnet38", "vgg16"])
def test_published_grid_at_448(name):
    with torch.device("meta"):
        backbone = build_backbone(name)
    maps = backbone(torch.empty(1, 3, 448, 448, device="meta"))
    grids = {tuple(maps[tap].shape[2:]) for tap in backbone.affinity_taps}
    assert grids == {(56, 56)}


def test_unknown_name():
    with pytest.raises(ConfigError, match="unknown backbone 'vgg': choose one of resnet38, vgg16"):
        build_backbone("vgg")
