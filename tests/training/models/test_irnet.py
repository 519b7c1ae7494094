"""IRNet's network: the published layers, its grids, and which loss trains what."""

import math

import pytest
import torch
from backbone_contract import random_image, relative_error
from torch import nn
from torch.nn import functional as F

from wsss.training.backbones.build import BACKBONES, build_backbone
from wsss.training.engine.loop import build_optimizer
from wsss.training.engine.networks import NetworkSpec, open_network, save_network, start_network
from wsss.training.methods.irnet.network import IRNet
from wsss.training.methods.irnet.recipe import IRNetTrainSettings

CPU = torch.device("cpu")


def small_network(align_corners=False, output_stride=8, displacement=True):
    torch.manual_seed(1)
    return IRNet(build_backbone("small", output_stride), align_corners, displacement).eval()


def convolutions_and_groups(part):
    """(in, out, groups of the normalisation behind it or None, has a bias) of each convolution."""
    layers = [module for module in part.modules() if isinstance(module, nn.Conv2d | nn.GroupNorm)]
    found = []
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            assert layer.kernel_size == (1, 1)
            groups = following.num_groups if isinstance(following, nn.GroupNorm) else None
            found.append((layer.in_channels, layer.out_channels, groups, layer.bias is not None))
    return found


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_grids_have_stride_4_on_every_backbone(backbone, output_stride, align_corners):
    with torch.device("meta"):
        network = IRNet(build_backbone(backbone, output_stride), align_corners)
    assert network.feature_stride == 4
    for height, width in ((1, 1), (33, 50), (64, 48), (81, 49)):
        found = network(torch.empty(2, 3, height, width, device="meta"))
        grid = math.ceil(height / 4), math.ceil(width / 4)
        assert found["boundary"].shape == (2, 1, *grid)
        assert found["displacement"].shape == (2, 2, *grid)


def test_layers_of_the_published_network():
    with torch.device("meta"):
        network = IRNet(build_backbone("resnet50", 16))
    assert network.taps == ("stem", "layer1", "layer2", "layer3", "layer4")
    inputs = (64, 256, 512, 1024, 2048)
    assert convolutions_and_groups(network.boundary_layers) == [(n, 32, 4, False) for n in inputs]
    assert convolutions_and_groups(network.boundary) == [(160, 1, None, True)]
    widths, groups = (64, 128, 256, 256, 256), (8, 16, 16, 16, 16)
    assert convolutions_and_groups(network.displacement) == [
        *((n, width, g, False) for n, width, g in zip(inputs, widths, groups, strict=True)),
        (768, 256, 16, False),
        (448, 256, 16, False),
        (256, 2, None, False),
    ]
    found = network(torch.empty(1, 3, 512, 512, device="meta"))
    assert found["boundary"].shape == (1, 1, 128, 128)
    assert found["displacement"].shape == (1, 2, 128, 128)


def published_forward(network, image):
    """Both branches as the released code states them, step by step."""
    maps = [network.backbone(image)[tap] for tap in network.taps]

    def layer(part, x):
        convolution, norm = part
        x = F.conv2d(x, convolution.weight)
        return F.group_norm(x, norm.num_groups, norm.weight, norm.bias)

    def up(x, factor):
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    def cut(x, like):
        return x[..., : like.shape[2], : like.shape[3]]

    factors = (1, 1, 2, 4, 4)
    edges = [
        F.relu(cut(up(layer(part, x), factor), maps[1]))
        for part, x, factor in zip(network.boundary_layers, maps, factors, strict=True)
    ]
    boundary = F.conv2d(torch.cat(edges, 1), network.boundary.weight, network.boundary.bias)
    branch = network.displacement
    dp = [layer(part, x) for part, x in zip(branch.layers, maps, strict=True)]
    dp1, dp2, dp3 = F.relu(dp[0]), F.relu(dp[1]), F.relu(dp[2])
    dp4, dp5 = (F.relu(cut(up(x, 2), dp3)) for x in dp[3:])
    dp6 = F.relu(cut(up(layer(branch.mix_coarse, torch.cat([dp3, dp4, dp5], 1)), 2), dp2))
    dp7 = F.relu(layer(branch.mix, torch.cat([dp1, dp2, dp6], 1)))
    return boundary, F.conv2d(dp7, branch.offset.weight)


@torch.no_grad()
def test_forward_equals_the_published_steps():
    torch.manual_seed(1)
    network = IRNet(build_backbone("resnet50", 16)).eval()
    image = random_image((74, 101), batch=2)
    found = network(image)
    boundary, displacement = published_forward(network, image)
    assert relative_error(found["boundary"], boundary) < 1e-5
    assert relative_error(found["displacement"], displacement) < 1e-5


@pytest.mark.parametrize("align_corners", [True, False])
@torch.no_grad()
def test_coarse_taps_lie_on_the_fine_grid_as_asked(align_corners):
    network = small_network(align_corners, output_stride=16)
    network.boundary = nn.Identity()
    # Side 16 k + 1: cell i of stride 16 and cell 4 i of stride 4 are the same pixel.
    image = random_image((65, 49))
    coarse = F.relu(network.boundary_layers[4](network.backbone(image)["final"]))
    sampled = network(image)["boundary"][:, 128:, ::4, ::4]
    assert (relative_error(sampled, coarse) < 1e-5) == align_corners


@pytest.mark.parametrize("name", ["boundary", "displacement"])
def test_a_branch_trains_itself_alone(name):
    network = small_network().train()
    network(random_image((33, 40), batch=2))[name].square().sum().backward()
    for parameter_name, parameter in network.named_parameters():
        own = parameter_name.startswith(name)
        assert (parameter.grad is not None) == own, parameter_name
        assert not own or bool(parameter.grad.any()), parameter_name
    alone = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    found = network(random_image((33, 40), batch=2))
    sum(values.square().sum() for values in found.values()).backward()
    assert all(torch.equal(network.get_parameter(n).grad, g) for n, g in alone.items())


def test_branches_learn_at_the_published_rates():
    network = small_network()
    settings = IRNetTrainSettings(epochs=3, batch_size=32, learning_rate=0.1)
    optimizer = build_optimizer(network, settings)
    found = {
        id(parameter): (group["lr"], group["weight_decay"], group["momentum"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in network.named_parameters():
        if name.startswith("backbone."):
            assert id(parameter) not in found
        else:
            rate = 1.0 if name.startswith("displacement.") else 0.1
            assert found[id(parameter)] == (rate, 1e-4, 0), name
    doubled = build_optimizer(network, settings.model_copy(update={"biases": "doubled"}))
    rates = {(group["lr"], group["weight_decay"]) for group in doubled.param_groups}
    assert rates == {(0.1, 1e-4), (0.2, 0), (1.0, 1e-4), (2.0, 0)}


@torch.no_grad()
def test_the_backbone_computes_as_in_use_while_branches_train():
    torch.manual_seed(1)
    network = IRNet(build_backbone("vgg16"))  # the one with dropout inside
    image = random_image((40, 33))
    training, used = network.train()(image), network.eval()(image)
    for name, values in training.items():
        assert torch.equal(values, used[name])


@torch.no_grad()
def test_the_mean_displacement_is_taken_off_in_use_only():
    network, image = small_network(), random_image((33, 40))
    plain = network(image)["displacement"]
    network.mean_displacement.copy_(torch.tensor([3.0, -2.0]))
    assert torch.equal(network.train()(image)["displacement"], plain)
    moved = network.eval()(image)["displacement"]
    assert torch.equal(moved, plain - torch.tensor([3.0, -2.0])[:, None, None])


@pytest.mark.parametrize("align_corners", [True, False])
@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(align_corners):
    network = small_network(align_corners)
    images = random_image((33, 41), batch=3)
    images[1:] *= 50
    alone, together = network(images[:1]), network(images)
    for name, values in alone.items():
        assert relative_error(together[name][:1], values) < 1e-4


@torch.no_grad()
def test_boundaries_do_not_need_the_other_branch():
    network, image = small_network(), random_image((33, 40))
    expected = network(image)
    assert torch.equal(network.boundary_logits(image), expected["boundary"])
    half = small_network(displacement=False)
    own = half.state_dict().keys()
    assert own == {k for k in network.state_dict() if not k.startswith("displacement.")}
    half.load_state_dict({key: network.state_dict()[key] for key in own})
    found = half(image)
    assert found.keys() == {"boundary"} and torch.equal(found["boundary"], expected["boundary"])


@pytest.mark.parametrize("displacement", [True, False])
def test_a_checkpoint_holds_the_whole_network(tmp_path, displacement):
    arguments = {"align_corners": True, "displacement": displacement}
    spec = NetworkSpec(IRNet, "small", 16, arguments)
    network = start_network(spec, seed=4, weights_path=None).eval()
    network.mean_displacement.copy_(torch.tensor([0.5, -0.25]))
    path = tmp_path / "weights.safetensors"
    save_network(path, network, spec, ("cat",), "irnet")
    opened, _ = open_network(IRNet, path, CPU)
    assert opened.align_corners and (opened.displacement is not None) == displacement
    image = random_image((33, 49))
    with torch.no_grad():
        for name, values in network(image).items():
            assert torch.equal(opened(image)[name], values)
