"""What the stage makes of IRNet's maps, each against the published rule written out."""

from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from backbone_contract import relative_error
from numpy.typing import NDArray
from tiny_run import tiny_recipe
from torch import Tensor
from torch.nn import functional as F

from wsss.runtime.io.image_io import read_image
from wsss.runtime.io.progress import SILENT
from wsss.runtime.refine.geometry import Align
from wsss.training.backbones.build import build_backbone
from wsss.training.data.image_set import ImageSet
from wsss.training.engine.run import Run
from wsss.training.methods.irnet.network import IRNet, affinities, image_boundary, image_maps
from wsss.training.methods.irnet.train import (
    irnet_network,
    irnet_objective,
    take_mean_displacement,
)
from wsss.training.recipe.recipe import Recipe

CPU = torch.device("cpu")
ALIGNS: tuple[Align, ...] = ("reference", "corners")


def network_for(align: Align, stride: int = 16) -> IRNet:
    torch.manual_seed(1)
    network = IRNet(build_backbone("small", stride), align == "corners").eval()
    # Logits of random layers hardly differ from 0: these tell cells and mirrors apart.
    network.boundary.weight.data *= 5
    return network


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Coarse patches, so that the network has edges to find."""
    generator = np.random.default_rng(seed)
    patches = generator.integers(0, 256, (-(-height // 9), -(-width // 9), 3), np.uint8)
    return np.ascontiguousarray(patches.repeat(9, 0).repeat(9, 1)[:height, :width])


def irnet_run(images: ImageSet, folder: Path, *overrides: str) -> Run:
    recipe = tiny_recipe(*overrides, method="irnet")
    return Run(folder, recipe, images, None, None, None, CPU, SILENT)


def network_of(recipe: Recipe) -> IRNet:
    torch.manual_seed(2)
    network = irnet_network(recipe, 2).build().eval()
    assert isinstance(network, IRNet)
    return network


def pixels_of(network: IRNet, image: NDArray[np.uint8]) -> Tensor:
    """(1, 3, H, W) normalised."""
    tensor = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    return network.backbone.normaliser(tensor)


def maps_of(network: IRNet, normalised: Tensor) -> dict[str, Tensor]:
    return network.read(network.backbone.forward_normalised(normalised))


# Maps of an image


@torch.no_grad()
def test_boundaries_are_mirrored_logits_averaged() -> None:
    """Padded to multiples of 16 below and right, mirrored with the padding, cut to ceil(. / 4)."""
    network, image = network_for("reference"), photo(45, 70)
    padded = F.pad(pixels_of(network, image), (0, 80 - 70, 0, 48 - 45))
    upright = maps_of(network, padded)
    mirrored = maps_of(network, padded.flip(3))["boundary"].flip(3)
    logits = (upright["boundary"].double() / 2 + mirrored.double() / 2)[..., :12, :18]
    expected = 1 / (1 + torch.exp(-logits))
    assert float(expected.max() - expected.min()) > 0.1
    boundary, displacement = image_maps(network, image, align="reference", device=CPU)
    assert displacement is not None
    torch.testing.assert_close(boundary.double(), expected, rtol=0, atol=1e-6)
    # The image alone tells displacements; its mirror has others.
    assert relative_error(displacement, upright["displacement"][..., :12, :18]) < 1e-5
    probabilities = (upright["boundary"].sigmoid() + mirrored.sigmoid()) / 2
    assert relative_error(probabilities[..., :12, :18], boundary) > 1e-4


@torch.no_grad()
def test_images_are_resized_to_whole_cells_under_corners() -> None:
    network, image = network_for("corners"), photo(45, 70)
    boundary, displacement = image_maps(network, image, align="corners", device=CPU)
    pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, (49, 65), mode="bilinear", align_corners=True)
    upright = network(resized)
    mirrored = network(resized.flip(3))
    expected = ((upright["boundary"] + mirrored["boundary"].flip(3)) / 2).sigmoid()
    assert displacement is not None and boundary.shape == (1, 1, 13, 17)
    torch.testing.assert_close(boundary, expected, rtol=0, atol=1e-6)
    assert relative_error(displacement, upright["displacement"]) < 1e-5


@pytest.mark.parametrize("align", ALIGNS)
@pytest.mark.parametrize("size", [(1, 1), (5, 64), (64, 48)])
def test_boundaries_alone_are_those_of_all_maps(align: Align, size: tuple[int, int]) -> None:
    network, image = network_for(align), photo(*size)
    boundary, _ = image_maps(network, image, align=align, device=CPU)
    assert torch.equal(image_boundary(network, image, align=align, device=CPU), boundary)
    assert not boundary.requires_grad


@pytest.mark.parametrize(("align", "size"), [("reference", (40, 64)), ("corners", (40, 57))])
def test_a_mirrored_image_has_the_mirrored_boundary(align: Align, size: tuple[int, int]) -> None:
    network, image = network_for(align), photo(*size)
    boundary = image_boundary(network, image, align=align, device=CPU)
    mirror = np.ascontiguousarray(image[:, ::-1])
    found = image_boundary(network, mirror, align=align, device=CPU)
    torch.testing.assert_close(found, boundary.flip(3), rtol=0, atol=1e-5)
    assert relative_error(boundary.flip(3), boundary) > 1e-3


@pytest.mark.parametrize("align", ALIGNS)
def test_images_larger_than_the_published_canvas_are_not_cut(align: Align) -> None:
    """What lies beyond 512 pixels changes the boundaries there."""
    network, image = network_for(align), photo(49, 705)
    whole = image_boundary(network, image, align=align, device=CPU)
    assert whole.shape == (1, 1, 13, 177)
    other = image.copy()
    other[:, 672:] = 255 - other[:, 672:]
    changed = image_boundary(network, other, align=align, device=CPU)
    difference = (whole - changed).abs()[0, 0]
    assert float(difference[:, 168:].max()) > 1e-3


def test_without_displacements_there_are_boundaries_only() -> None:
    torch.manual_seed(1)
    network = IRNet(build_backbone("small", 8), displacement=False).eval()
    boundary, displacement = image_maps(network, photo(20, 30), align="reference", device=CPU)
    assert boundary.shape == (1, 1, 5, 8) and displacement is None


@pytest.mark.parametrize("align", ALIGNS)
def test_affinities_of_an_image_follow_its_boundaries(align: Align) -> None:
    recipe = tiny_recipe(f"cam.align={align}", "walk.beta=3", "walk.radius=4", method="irnet")
    network, image = network_for(align), photo(33, 49)
    boundary = image_boundary(network, image, align=align, device=CPU)
    affinity, damping = affinities(boundary, recipe)
    expected = (1 - reference.path_maxima(boundary, 4, "full")) ** 3
    torch.testing.assert_close(affinity.double(), expected, rtol=1e-5, atol=1e-9)
    assert damping is not None and torch.equal(damping, 1 - boundary)


# The mean displacement


def naive_mean(network: IRNet, images: list[NDArray[np.uint8]], side: int) -> Tensor:
    """Mean over all cells of all images, each at the top left of a square of zeros."""
    total, cells = torch.zeros(2, dtype=torch.float64), 0
    for image in images:
        pixels = pixels_of(network, image)
        height, width = pixels.shape[-2:]
        rows, columns = max(side, height + -height % 16), max(side, width + -width % 16)
        square = torch.zeros(1, 3, rows, columns)
        square[..., :height, :width] = pixels
        # As while training: nothing is taken off.
        found = maps_of(network.train(), square)["displacement"].detach().double()
        total += found.sum((0, 2, 3))
        cells += found.shape[2] * found.shape[3]
    return total / cells


@pytest.mark.parametrize("canvas", [0, 48, 96])
def test_the_mean_displacement_counts_the_canvas(
    tiny_images: ImageSet, tmp_path: Path, canvas: int
) -> None:
    settings = ("cam.align=reference", "backbone.output_stride=16", f"irnet.canvas={canvas}")
    run = irnet_run(tiny_images, tmp_path, *settings)
    network = network_of(run.recipe)
    network.mean_displacement.fill_(7.0)  # of an earlier call: must not count
    photos = [read_image(sample.image_path) for sample in run.train_set.samples]
    expected = naive_mean(network, photos, canvas)
    take_mean_displacement(run, network)
    torch.testing.assert_close(network.mean_displacement.double(), expected, rtol=1e-5, atol=1e-6)
    assert not network.training


def test_the_mean_displacement_needs_no_boundaries(tiny_images: ImageSet, tmp_path: Path) -> None:
    """The same to the bit as by the whole network, whose other branch is not computed."""
    settings = ("cam.align=reference", "backbone.output_stride=16", "irnet.canvas=0")
    run = irnet_run(tiny_images, tmp_path, *settings)
    network = network_of(run.recipe)
    total, cells = torch.zeros(2, dtype=torch.float64), 0
    for sample in run.train_set.samples:
        pixels = pixels_of(network, read_image(sample.image_path))
        height, width = pixels.shape[-2:]
        with torch.no_grad():
            found = maps_of(network, F.pad(pixels, (0, -width % 16, 0, -height % 16)))[
                "displacement"
            ]
        found = found.double()
        total += found.sum((0, 2, 3))
        cells += found.shape[2] * found.shape[3]
    boundaries: list[Tensor] = []
    network.boundary.register_forward_hook(lambda _, given, made: boundaries.append(made))
    take_mean_displacement(run, network)
    assert torch.equal(network.mean_displacement, (total / cells).float())
    assert not boundaries


def test_displacements_are_zero_in_the_mean_afterwards(
    tiny_images: ImageSet, tmp_path: Path
) -> None:
    run = irnet_run(tiny_images, tmp_path, "irnet.canvas=0")
    network = network_of(run.recipe)
    take_mean_displacement(run, network)
    assert float(network.mean_displacement.abs().max()) > 1e-3
    total, cells = torch.zeros(2, dtype=torch.float64), 0
    for sample in run.train_set.samples:
        image = read_image(sample.image_path)
        _, field = image_maps(network, image, align="corners", device=CPU)
        assert field is not None
        total += field.double().sum((0, 2, 3))
        cells += field.shape[2] * field.shape[3]
    assert (total / cells).abs().max() < 1e-6


def test_the_canvas_has_whole_cells_under_corners(tiny_images: ImageSet, tmp_path: Path) -> None:
    """64 pixels become 65: corner cells of all taps lie on each other."""
    run = irnet_run(tiny_images, tmp_path, "irnet.canvas=64")
    network = network_of(run.recipe)
    sizes = set()
    network.backbone.register_forward_pre_hook(
        lambda _, given: sizes.add(tuple(given[0].shape[-2:]))
    )
    take_mean_displacement(run, network)
    assert sizes == {(65, 65)}


# The objective


@pytest.mark.parametrize("with_displacement", [True, False])
def test_the_loss_of_a_batch_is_the_published_one(
    finished_irnet_run: Path, tiny_images: ImageSet, with_displacement: bool
) -> None:
    run = irnet_run(
        tiny_images, finished_irnet_run, f"irnet.displacement={str(with_displacement).lower()}"
    )
    network = network_of(run.recipe).train()
    objective = irnet_objective(run, network)
    # The last image is background alone.
    samples = [objective.sample(index, np.random.default_rng([3, index])) for index in (0, 2, 9)]
    batch = {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in samples[0]}
    assert batch["labels"].shape == (3, 9, 9)
    assert set(batch["labels"].unique().tolist()) == {0, 1, 2, 255}
    sums, counts = objective.terms(network, batch)
    assert len(objective.names) == len(sums) == (5 if with_displacement else 3)
    inside = torch.stack([torch.as_tensor(s["inside"]) for s in samples])
    images = network.backbone.normaliser(batch["image"])
    for image, (top, left, bottom, right) in zip(images, inside.tolist(), strict=True):
        shown = image[:, top:bottom, left:right].clone()
        image.zero_()
        image[:, top:bottom, left:right] = shown
    with torch.no_grad():
        found = maps_of(network, images)
    expected = reference.irnet_loss(
        found["boundary"].double().sigmoid(),
        found["displacement"].double() if with_displacement else None,
        batch["labels"],
        3,
        "full",
    )
    assert objective.loss(sums, counts).item() == pytest.approx(expected, rel=1e-5)
