"""CIAN's network: its module against loops, where it starts, and what its branches look at."""

import math

import cian_reference
import numpy as np
import pytest
import torch
from torch import nn

from wsss.training.backbones.build import BACKBONES, build_backbone
from wsss.training.engine.checkpoint import load_checkpoint
from wsss.training.engine.loop import build_optimizer
from wsss.training.engine.networks import NetworkSpec, open_network, save_network, start_network
from wsss.training.methods.cian import network as cian
from wsss.training.methods.cian.network import CianSegmenter, CrossImageAffinity, WholeBatchNorm2d
from wsss.training.methods.cian.recipe import CianTrainSettings
from wsss.training.methods.shared.classifier import CamClassifier

CPU = torch.device("cpu")
FEATURES, CHANNELS = 6, 4


def random_images(batch, height, width):
    generator = torch.Generator().manual_seed(7)
    return 255 * torch.rand(batch, 3, height, width, generator=generator)


def module(seed=0):
    """In float64, with weights that make the softmax choose and a scale that shows it."""
    torch.manual_seed(seed)
    affinity = CrossImageAffinity(FEATURES, CHANNELS).double()
    for layer in (affinity.query, affinity.key, affinity.value, affinity.out):
        nn.init.normal_(layer.weight, std=0.7)
    nn.init.normal_(affinity.norm.weight)
    nn.init.normal_(affinity.norm.bias)
    return affinity


def weights_of(affinity):
    found = {
        name: getattr(affinity, name).weight.detach().numpy()[:, :, 0, 0]
        for name in ("query", "key", "value", "out")
    }
    norm = affinity.norm
    return found | {"scale": norm.weight.detach().numpy(), "shift": norm.bias.detach().numpy()}


@pytest.mark.parametrize("grid", [(5, 8), (6, 3), (1, 4), (2, 2)])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(("group_size", "batch"), [(2, 6), (3, 6), (2, 2)])
def test_both_branches_are_those_of_loops_over_cells(group_size, batch, own, grid):
    affinity = module().train()
    x = torch.randn(batch, FEATURES, *grid, dtype=torch.float64)
    expected = cian_reference.branches(
        weights_of(affinity), list(x.numpy()), group_size, affinity.norm.eps, own
    )
    with torch.no_grad():
        found = affinity.across(x, group_size, own)
        alone = affinity(x)
    assert (found[0] is not None) == own
    for branch, values in zip(found, expected, strict=True):
        if branch is not None:
            np.testing.assert_allclose(branch.numpy(), np.stack(values), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(alone.numpy(), np.stack(expected[0]), rtol=1e-9, atol=1e-10)
    assert not np.allclose(expected[0], expected[1])


@pytest.mark.parametrize("training", [True, False])
def test_products_are_not_rounded_where_the_rest_is_in_half_precision(training):
    """Alone as in groups: large products that differ by little choose other cells when rounded."""
    affinity = module().float().train(training)
    x = 5 * torch.randn(2, FEATURES, 11, 13)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        query, key, value = affinity._project(x)
        found = affinity._gather(query, key, value)
        alone, (own, _) = affinity(x), affinity.across(x, 2, True)
        rounded = torch.softmax(query.transpose(1, 2) @ key, dim=2) @ value.transpose(1, 2)
    assert query.dtype == found.dtype == torch.bfloat16 and torch.equal(alone, own)
    for row in range(2):
        parts = (
            query[row].view(-1, 11, 13),
            key[row].view(-1, 6, 7),
            value[row].view(-1, 6, 7),
        )
        exact = cian_reference.gather(*(part.double().numpy() for part in parts)).reshape(4, -1)
        np.testing.assert_allclose(found[row].double().numpy(), exact, rtol=2**-8, atol=1e-4)
        assert np.abs(rounded[row].T.double().numpy() - exact).max() > 0.3


def test_an_image_looks_at_itself_only_where_that_is_wanted(monkeypatch):
    looks = []
    gather = CrossImageAffinity._gather
    monkeypatch.setattr(
        CrossImageAffinity, "_gather", lambda *given: looks.append(1) or gather(*given)
    )
    x = random_images(3, 33, 33)
    for self_affinity, group_size, training, expected in (
        (True, 1, False, 1),
        (True, 3, True, 3),
        (False, 1, False, 0),
        (False, 1, True, 0),
        (False, 3, False, 2),
        (False, 3, True, 2),
    ):
        looks.clear()
        network(self_affinity=self_affinity).train(training)(x, group_size=group_size)
        assert len(looks) == expected


def test_groups_do_not_see_each_other():
    """Of another group nothing arrives but, while training, its part in the statistics."""
    affinity = module().eval()
    x = torch.randn(4, FEATURES, 5, 5, dtype=torch.float64)
    other = torch.cat([x[:2], torch.randn(2, FEATURES, 5, 5, dtype=torch.float64)])
    for one, two in zip(affinity.across(x, 2, True), affinity.across(other, 2, True), strict=True):
        assert torch.equal(one[:2], two[:2]) and not torch.equal(one[2:], two[2:])


def test_an_image_that_is_its_own_partner_gathers_what_it_gathers_alone():
    affinity = module().train()
    x = torch.randn(2, FEATURES, 5, 5, dtype=torch.float64).repeat_interleave(2, 0)
    own, cross = affinity.across(x, 2, True)
    torch.testing.assert_close(own, cross, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("at_a_time", [1, 7, 1000])
def test_labelling_takes_queries_in_parts(monkeypatch, at_a_time):
    affinity = module().eval()
    x = torch.randn(2, FEATURES, 7, 9, dtype=torch.float64)
    expected = affinity(x)
    keys = 2 * 4 * 5
    monkeypatch.setattr(cian, "AFFINITY_CELLS", at_a_time * keys)
    torch.testing.assert_close(affinity(x), expected, rtol=1e-12, atol=1e-13)


def network(backbone="small", output_stride=8, **options):
    torch.manual_seed(3)
    return CianSegmenter(build_backbone(backbone, output_stride), 2, 8, **options)


def test_at_the_start_nothing_is_added():
    """Scale and shift are 0: both branches are the plain segmenter."""
    found = network().train()
    plain = network(self_affinity=False).eval()
    plain.load_state_dict(found.state_dict())
    images = torch.cat([random_images(1, 40, 33), random_images(1, 40, 33) * 0.5])
    own, cross = found(images, group_size=2)
    expected = plain(images)
    assert torch.equal(own, expected) and torch.equal(cross, expected)
    assert torch.equal(found.eval()(images), expected)


def test_new_layers_start_small_and_learn_at_their_rate():
    found = network("mobilenetv2", 16)
    found.backbone.mark_pretrained()
    affinity = found.affinity
    layers = (affinity.query, affinity.key, affinity.value, affinity.out, found.head[-1])
    for layer in layers:
        assert layer.bias is None
        assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert found.head[-1].kernel_size == (3, 3) and found.head[-1].dilation == (6, 6)
    settings = CianTrainSettings(epochs=1, batch_size=2, learning_rate=0.1)
    groups = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in build_optimizer(found, settings).param_groups
        for parameter in group["params"]
    }
    assert all(groups[id(layer.weight)] == (1.0, 5e-4) for layer in layers)
    assert groups[id(affinity.norm.weight)] == (1.0, 5e-4)
    assert groups[id(affinity.norm.bias)] == (1.0, 0.0)  # shifts do not decay
    pretrained = [groups[id(p)] for p in found.backbone.parameters() if id(p) in groups]
    assert pretrained and set(pretrained) == {(0.1, 5e-4)}


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_grids_on_every_backbone(backbone, output_stride):
    with torch.device("meta"):
        found = CianSegmenter(build_backbone(backbone, output_stride), 4).eval()
    for height, width in ((33, 50), (81, 49)):
        images = torch.empty(2, 3, height, width, device="meta")
        grid = math.ceil(height / output_stride), math.ceil(width / output_stride)
        assert found(images).shape == (2, 5, *grid)


def test_in_training_both_branches_come_together():
    found = network("small", 16).train()
    assert found(random_images(4, 33, 50), group_size=2).shape == (2, 4, 3, 3, 4)
    assert found(random_images(4, 33, 50)).shape == (4, 3, 3, 4)


def trained(**options):
    """As if trained: a scale and running statistics that are not those of the start."""
    found = network(**options)
    torch.manual_seed(5)
    nn.init.normal_(found.affinity.norm.weight)
    nn.init.normal_(found.affinity.norm.running_mean)
    for layer in (found.affinity.query, found.affinity.key, found.head[-1]):
        nn.init.normal_(layer.weight, std=0.3)
    return found


def test_the_rest_of_a_batch_does_not_matter_in_use():
    found = trained().eval()
    one = random_images(1, 41, 33)
    companions = torch.cat([one, torch.rand(3, 3, 41, 33) * 255])
    with torch.no_grad():
        torch.testing.assert_close(found(companions)[:1], found(one), rtol=1e-5, atol=1e-5)


def test_without_self_affinity_an_image_is_segmented_plainly():
    found = trained(self_affinity=False).eval()
    image = random_images(2, 41, 33)
    with torch.no_grad():
        expected = found.head(found.backbone(image)[found.backbone.final_tap])
        assert torch.equal(found(image), expected)
        own, cross = found(image, group_size=2)
    assert torch.equal(own, expected) and not torch.allclose(cross, expected)


def test_running_statistics_are_those_of_the_self_branch():
    found = trained().train()
    norm = found.affinity.norm
    before = norm.running_mean.clone()
    images = torch.rand(4, 3, 41, 33) * 255
    features = found.backbone(images)[found.backbone.final_tap]
    parts = found.affinity._project(features)
    alone = found.affinity._gather(*parts).reshape(4, 8, *features.shape[2:])
    mean = found.affinity.out(alone).mean((0, 2, 3))
    found(images, group_size=2)
    torch.testing.assert_close(norm.running_mean, before.lerp(mean, 0.1), rtol=1e-4, atol=1e-5)


def test_without_a_self_branch_running_statistics_are_those_of_the_cross_branch():
    found = trained(self_affinity=False).train()
    norm = found.affinity.norm
    before = norm.running_mean.clone()
    images = torch.rand(4, 3, 41, 33) * 255
    features = found.backbone(images)[found.backbone.final_tap]
    query, key, value = found.affinity._project(features)
    partners = torch.tensor([1, 0, 3, 2])
    gathered = found.affinity._gather(query, key[partners], value[partners])
    mean = found.affinity.out(gathered.reshape(4, 8, *features.shape[2:])).mean((0, 2, 3))
    found(images)
    assert torch.equal(norm.running_mean, before)  # nothing was added
    found(images, group_size=2)
    torch.testing.assert_close(norm.running_mean, before.lerp(mean, 0.1), rtol=1e-4, atol=1e-5)


def test_the_classifier_stands_in_the_middle_of_the_kernels(tmp_path):
    cam = NetworkSpec(CamClassifier, "small", 8, {"num_classes": 2})
    classifier = start_network(cam, seed=1, weights_path=None)
    path = tmp_path / "cam.safetensors"
    save_network(path, classifier, cam, ("a", "b"), "cian")
    options = {"seed": 2, "weights_path": None}
    spec = NetworkSpec(CianSegmenter, "small", 8, {"num_classes": 2, "channels": 8})
    fresh = start_network(spec, **options)
    found = start_network(spec, **options, classifier_path=path)
    taken, given = found.head[-1].weight, classifier.classifier.weight
    assert torch.equal(taken[1:, :, 1, 1], given[:, :, 0, 0])
    taken.data[1:, :, 1, 1] = fresh.head[-1].weight[1:, :, 1, 1]
    assert torch.equal(taken, fresh.head[-1].weight)


@pytest.mark.parametrize(("channels", "self_affinity"), [(16, True), (5, False)])
def test_a_network_reads_back_and_goes_on(tmp_path, channels, self_affinity):
    arguments = {"num_classes": 2, "channels": channels, "self_affinity": self_affinity}
    spec = NetworkSpec(CianSegmenter, "small", 8, arguments)
    found = start_network(spec, seed=4, weights_path=None)
    nn.init.normal_(found.affinity.norm.weight)
    path = tmp_path / "weights.safetensors"
    save_network(path, found, spec, ("a", "b"), "cian")
    assert load_checkpoint(path)[1]["network"] == spec.to_header()
    again, classes = open_network(CianSegmenter, path, CPU)
    assert classes == ("a", "b") and again.self_affinity == self_affinity
    image = random_images(1, 40, 33)
    assert torch.equal(again(image), found.eval()(image))
    started = start_network(spec, seed=9, weights_path=None, network_path=path)
    for name, value in found.state_dict().items():
        assert torch.equal(started.state_dict()[name], value), name
    assert not list(p for p in started.backbone.modules() if p.__dict__.get("is_new"))


@pytest.mark.parametrize("head", ["", "0 channels", "99999 channels", "-1 channels", "8 channels,"])
def test_heads_that_are_not_cians_are_refused(head):
    """In the headers of checkpoints of format 1."""
    with pytest.raises(TypeError, match="unknown head"):
        CianSegmenter.old_arguments({"num_classes": 2, "head": head, "align": "corners"})


# Batch normalisation


def test_in_one_process_it_is_torchs():
    torch.manual_seed(0)
    own, torchs = WholeBatchNorm2d(5), nn.BatchNorm2d(5)
    for _ in range(3):
        x = torch.randn(4, 5, 6, 7) * 3 + 1
        assert torch.equal(own(x), torchs(x))
    own.eval(), torchs.eval()
    assert torch.equal(own(x), torchs(x))
    kept = own.train().running_mean.clone()
    own(x + 1, track=False)
    assert torch.equal(own.running_mean, kept)
