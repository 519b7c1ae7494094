"""The self-guided network: a segmenter to others, with one more head for its own labels."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wsss.runtime.refine.pairs import PairOffsets
from wsss.runtime.refine.random_walk import propagate
from wsss.training.backbones.build import build_backbone
from wsss.training.backbones.parameters import parameter_groups
from wsss.training.methods.selfguided.network import AllMaps, SelfGuidedMaps, SelfGuidedNet
from wsss.training.methods.selfguided.recipe import SelfGuidedSection
from wsss.training.methods.selfguided.train import agreement_sums, walk_to_alike
from wsss.training.methods.shared.classifier import CamClassifier
from wsss.training.methods.shared.segmenter_network import Segmenter


def network(head: str = "dilated", backbone: str = "small") -> SelfGuidedNet:
    torch.manual_seed(0)
    return SelfGuidedNet(build_backbone(backbone), 3, head, align_corners=True).eval()


def pixels(*size: int) -> torch.Tensor:
    return 255 * torch.rand(*size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backbone", ["small", "mobilenetv2", "resnet50"])
def test_all_maps_of_one_pass(backbone: str) -> None:
    own, x = network(backbone=backbone), pixels(2, 3, 65, 97)
    with torch.no_grad():
        maps = AllMaps(own)(x)
        assert isinstance(own, Segmenter) and torch.equal(own(x), maps.logits)
    grid = tuple(-(-side // own.feature_stride) for side in (65, 97))
    assert maps.classes.shape == (2, 3) and maps.activation.shape == (2, 3, *grid)
    channels = sum(own.backbone.tap_channels[tap] for tap in own.backbone.affinity_taps[:2])
    assert maps.features.shape == (2, channels, *grid)
    assert maps.logits.shape[:2] == (2, 4) and float(maps.activation.min()) >= 0


def test_its_classification_head_is_the_classifier_that_it_took() -> None:
    x = pixels(2, 3, 65, 65)
    torch.manual_seed(3)
    classifier = CamClassifier(build_backbone("small"), 3).eval()
    own = network("linear")
    own.backbone.load_state_dict(classifier.backbone.state_dict())
    own.take_classifier(classifier.classifier.weight)
    with torch.no_grad():
        torch.testing.assert_close(own.maps(x).classes, classifier(x))
        torch.testing.assert_close(own.activation_and_features(x)[0], classifier.cam(x))
        planes = own.head[-1].weight[1:]
    assert torch.equal(planes, classifier.classifier.weight)
    new = {id(p) for p in parameter_groups(own)["new_weights"]}
    assert id(own.classifier.weight) not in new and id(own.head[-1].weight) in new


def test_companions_in_a_batch_do_not_matter() -> None:
    own, x = network(), pixels(3, 3, 65, 65)
    with torch.no_grad():
        for together, alone in zip(own.maps(x), own.maps(x[1:2]), strict=True):
            torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


SETTINGS = SelfGuidedSection(radius=3, beta=2.0, steps=4)


def maps_of(activation: torch.Tensor, features: torch.Tensor) -> SelfGuidedMaps:
    return SelfGuidedMaps(torch.zeros(2, 2), activation, features, torch.zeros(2, 3, 1, 1))


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activation, features, classes present, cells inside (the second image shows padding)."""
    generator = torch.Generator().manual_seed(2)
    activation = torch.rand(2, 2, 5, 6, generator=generator)
    features = torch.randn(2, 4, 5, 6, generator=generator)
    inside = torch.ones(2, 5, 6, dtype=torch.bool)
    inside[1, :, 4:] = False
    return activation, features, torch.tensor([[1, 0], [1, 1]]) > 0, inside


def dense_walk(maps: np.ndarray, features: np.ndarray) -> np.ndarray:
    """(n, N) maps and (F, h, w) features -> maps behind the walk, by an N x N matrix."""
    _, height, width = features.shape
    cells = [(y, x) for y in range(height) for x in range(width)]
    weights = np.eye(len(cells))
    for a, (y, x) in enumerate(cells):
        for b, (v, u) in enumerate(cells):
            if a != b and (y - v) ** 2 + (x - u) ** 2 < SETTINGS.radius**2:
                one, other = features[:, y, x], features[:, v, u]
                length = np.linalg.norm(one) * np.linalg.norm(other)
                cosine = one @ other / length if length else 0.0
                weights[a, b] = max(0.0, cosine) ** SETTINGS.beta
    step = weights / weights.sum(0, keepdims=True)  # columns sum to 1: M T of the method
    return maps @ np.linalg.matrix_power(step, SETTINGS.steps)


def test_maps_walk_to_cells_that_are_alike() -> None:
    activation, features, _, _ = drawn()
    found = walk_to_alike(activation, features, SETTINGS)
    for image in range(2):
        expected = dense_walk(
            activation[image].flatten(1).double().numpy(), features[image].double().numpy()
        )
        np.testing.assert_allclose(found[image].flatten(1), expected, atol=1e-5)


def test_agreement_is_the_mean_distance_to_the_walked_maps() -> None:
    activation, features, present, inside = drawn()
    total, count = agreement_sums(maps_of(activation, features), present, inside, SETTINGS)
    expected = 0.0
    for image, label in ((0, 0), (1, 0), (1, 1)):
        shown = inside[image].double().numpy()
        plane = activation[image, label].double().numpy() * shown
        plane = plane / (plane.max() + 1e-5)
        walked = dense_walk(
            plane.reshape(1, -1), features[image].double().numpy() * shown[None]
        ).reshape(plane.shape)
        expected += float((np.abs(plane - walked) * shown).sum())
    assert float(total) == pytest.approx(expected, rel=1e-4)
    assert float(count) == 30 + 2 * 20


def test_agreement_moves_maps_and_takes_the_walked_ones_as_given() -> None:
    activation, features, present, inside = drawn()
    activation.requires_grad_()
    features.requires_grad_()
    total, _ = agreement_sums(maps_of(activation, features), present, inside, SETTINGS)
    total.sum().backward()
    assert features.grad is None and activation.grad is not None
    assert float(activation.grad[0, 1].abs().max()) == 0  # a class that is not there
    assert float(activation.grad[1, :, :, 4:].abs().max()) == 0  # padding
    again = activation.detach().clone().requires_grad_()
    counted = (present[:, :, None, None] & inside[:, None]).float()
    kept = again * counted
    scaled = kept / (kept.amax(dim=(2, 3), keepdim=True) + 1e-5)
    masked = (features * inside[:, None]).detach()
    cosine = F.normalize(masked, dim=1)
    affinity = torch.zeros(2, len(PairOffsets(3)), 5, 6)
    for plane, (dy, dx) in enumerate(PairOffsets(3).offsets):
        for y in range(5 - dy):
            for x in range(max(0, -dx), 6 - max(0, dx)):
                product = (cosine[:, :, y, x] * cosine[:, :, y + dy, x + dx]).sum(1)
                affinity[:, plane, y, x] = product.clamp(0, 1) ** SETTINGS.beta
    walked = propagate(scaled.detach(), affinity, radius=3, steps=SETTINGS.steps, method="power")
    ((scaled - walked).abs() * counted).sum().backward()
    torch.testing.assert_close(activation.grad, again.grad, rtol=1e-4, atol=1e-5)
