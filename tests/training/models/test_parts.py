"""Normalisation of pixels, frozen batch normalisation, dropout and parameter groups."""

import copy

import pytest
import torch
from torch import nn

from wsss.errors import ArtifactError, ShapeError
from wsss.training.backbones.backbone import (
    CAFFE_BGR,
    CAFFE_RGB,
    IMAGENET,
    SYMMETRIC,
    Normalisation,
    stage_geometry,
)
from wsss.training.backbones.layers import (
    BatchKeyedDropout2d,
    FrozenBatchNorm2d,
    convolve_normalised,
    set_dropout_context,
)
from wsss.training.backbones.parameters import mark_new, parameter_groups


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        (IMAGENET, [(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0 - 0.406) / 0.225]),
        (SYMMETRIC, [1, -0.6, -1]),
        (CAFFE_BGR, [0 - 104.008, 51 - 116.669, 255 - 122.675]),
        (CAFFE_RGB, [255 - 0.48235 * 255, 51 - 0.45882 * 255, -0.40784 * 255]),
    ],
)
def test_normalisation_of_one_orange_pixel(normalisation, expected):
    pixel = torch.tensor([255, 51, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    assert normalisation.apply(pixel).flatten().tolist() == pytest.approx(expected, abs=1e-4)


def test_normalisation_takes_rgb_batches_only():
    with pytest.raises(ShapeError, match=r"\(1, 4, 2, 2\), expected \(B, 3, H, W\)"):
        IMAGENET.apply(torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize(
    "change",
    [
        {"std": [1, 1]},
        {"std": [1, 0, 1]},
        {"std": [1, float("nan"), 1]},
        {"mean": None},
        {"scale": -1},
        {"scale": "wide"},
        {"channel_order": "hsv"},
    ],
)
def test_damaged_normalisation_is_refused(change):
    with pytest.raises(ArtifactError, match="normalisation is"):
        Normalisation.from_dict(IMAGENET.to_dict() | change)


def test_stage_geometry_of_resnet_at_stride_8():
    stages = stage_geometry((1, 2, 2, 2), 8, stem_stride=4)
    assert [tuple(stage) for stage in stages] == [
        (1, 1, 1, 4),
        (2, 1, 1, 8),
        (1, 1, 2, 8),
        (1, 2, 4, 8),
    ]


def random_norm(channels, eps=1e-5):
    norm = FrozenBatchNorm2d(channels, eps)
    generator = torch.Generator().manual_seed(1)
    for buffer in norm.buffers():
        buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.1)
    return norm


def test_frozen_norm_equals_batch_norm_in_evaluation_and_never_changes():
    norm, reference = random_norm(6, eps=1e-3), nn.BatchNorm2d(6, eps=1e-3).eval()
    reference.load_state_dict({**norm.state_dict(), "num_batches_tracked": torch.tensor(7)})
    before = copy.deepcopy(norm.state_dict())
    norm.train()
    x = torch.randn(2, 6, 3, 5)
    torch.testing.assert_close(norm(x), reference(x))
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    assert not list(norm.parameters())


def test_frozen_norm_takes_the_state_of_batch_norm():
    source = nn.BatchNorm2d(4)
    source(torch.randn(3, 4, 5, 5))
    norm = FrozenBatchNorm2d(4)
    norm.load_state_dict(source.state_dict())
    assert torch.equal(norm.running_var, source.running_var)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 6, 1, bias=False),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=False),
    ],
    ids=["1x1", "strided", "dilated groups"],
)
def test_folded_convolution_equals_the_two_layers_forward_and_backward(convolution):
    norm = random_norm(6)
    x = torch.randn(2, 4, 7, 5)
    results = []
    for compute in (
        lambda: convolve_normalised(convolution, norm, x),
        lambda: norm(convolution(x)),
    ):
        convolution.zero_grad()
        output = compute()
        output.square().sum().backward()
        results.append((output.detach(), convolution.weight.grad.clone()))
    for folded, separate in zip(*results, strict=True):
        torch.testing.assert_close(folded, separate, rtol=1e-4, atol=1e-4)


def dropped(first_row, rows, *, step=4, global_batch=6, seed=11):
    network = nn.Sequential(BatchKeyedDropout2d(0.5), nn.Identity(), BatchKeyedDropout2d(0.25))
    set_dropout_context(network, seed, step, global_batch, first_row)
    ones = torch.ones(rows, 40, 2, 3)
    return torch.cat([network[0](ones), network[2](ones)], dim=1)


@pytest.mark.parametrize("processes", [2, 3])
def test_dropout_masks_are_those_of_one_process(processes):
    rows = 6 // processes
    parts = [dropped(rows * rank, rows) for rank in range(processes)]
    assert torch.equal(torch.cat(parts), dropped(0, 6))


def test_dropout_masks_depend_on_seed_step_layer_and_row_only():
    masks = dropped(0, 6)
    torch.manual_seed(99)
    assert torch.equal(masks, dropped(0, 6))
    assert not torch.equal(masks, dropped(0, 6, step=5))
    assert not torch.equal(masks, dropped(0, 6, seed=12))
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[:, :40] > 0, masks[:, 40:] > 0)


def test_dropout_drops_whole_channels_and_keeps_the_mean():
    masks = dropped(0, 512, global_batch=512)
    assert torch.equal(masks, masks[:, :, :1, :1].expand_as(masks))
    halves, quarters = masks[:, :40], masks[:, 40:]
    assert set(halves.unique().tolist()) == {0.0, 2.0}
    assert quarters.unique().tolist() == pytest.approx([0, 4 / 3])
    # 20,480 draws: five standard deviations of the mean are 0.035 and 0.02.
    assert float(halves.mean()) == pytest.approx(1, abs=0.035)
    assert float(quarters.mean()) == pytest.approx(1, abs=0.02)


def test_dropout_without_context_or_in_evaluation():
    layer = BatchKeyedDropout2d(0.5)
    x = torch.ones(2, 30, 1, 1)
    assert set(layer(x).unique().tolist()) == {0.0, 2.0}
    assert torch.equal(layer.eval()(x), x)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        BatchKeyedDropout2d(1.0)
    layer.train()
    set_dropout_context(layer, 0, 0, global_batch=2, first_row=1)
    with pytest.raises(ValueError, match=r"rows 1\.\.3 lie outside of a batch of 2"):
        layer(x)


def test_parameter_groups_hold_each_trainable_parameter_once():
    body, head, frozen = nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(1, 1)
    network = nn.Sequential(body, head, frozen)
    mark_new(head)
    frozen.requires_grad_(False)
    groups = parameter_groups(copy.deepcopy(network).to(torch.float64))
    assert {name: [tuple(p.shape) for p in group] for name, group in groups.items()} == {
        "pretrained_weights": [(3, 2)],
        "pretrained_biases": [(3,)],
        "new_weights": [(1, 3)],
        "new_biases": [(1,)],
    }
