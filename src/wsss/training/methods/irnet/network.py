"""IRNet: where classes and objects end, and which way the middle of each object lies."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ....errors import ConfigError
from ....runtime.refine.boundary_affinity import STRIDE, boundary_affinities
from ....runtime.refine.geometry import Align, grid_size, image_tensor, resize, scaled_size
from ....runtime.refine.pseudo_labels import WalkSettings
from ...backbones.backbone import Backbone
from ...backbones.parameters import mark_new
from ..contract import Affinities, AffinitySource
from ..shared.affinity_network import AffinityNetwork, padded
from .recipe import IRNetRecipe

BOUNDARY_CHANNELS = 32
BOUNDARY_GROUPS = 4
DISPLACEMENT_CHANNELS = (64, 128, 256, 256, 256)
MIXED_CHANNELS = 256
FINE, MIDDLE = 1, 2
"""Taps whose grids the others are brought to: strides 4 and 8."""


class IRNet(AffinityNetwork):
    """Find class boundaries, and the way from each grid cell to the centre of its object.

    Two branches of 1x1 layers on five taps of a frozen backbone.

    A tap goes through its own layer and group normalisation, is brought to the grid of the branch,
    and then passes a ReLU. Neither branch trains the backbone, nor the other branch; the backbone
    computes as in use while they train, without dropout.

    Args:
        backbone: from `build_backbone`; the network uses it, and does not copy it.
        align_corners: how taps of unlike stride are brought to one grid: corner cells on corner
            cells (`corners` alignment), or enlarged by the ratio of strides and cut (`reference`).
        displacement: whether to have the branch of displacements, which only instances need.

    Raises:
        ConfigError: a backbone without boundary taps of strides 4 and 8.

    Attributes:
        feature_stride: pixels per cell of both results.
        mean_displacement: (2,) subtracted from displacements outside of training.

    Source: IRNet (Ahn, Cho, Kwak, CVPR 2019) and its released code.
    """

    old_kind = "irnet"
    mean_displacement: Tensor

    def __init__(
        self, backbone: Backbone, align_corners: bool = False, displacement: bool = True
    ) -> None:
        super().__init__(backbone, align_corners)
        self.taps = backbone.boundary_taps
        self.strides = [backbone.tap_strides[tap] for tap in self.taps]
        if self.strides[FINE : MIDDLE + 1] != [4, 8]:
            found = sorted(set(backbone.tap_strides.values()))
            raise ConfigError(
                f"backbone `{backbone.name}` has no boundary taps of strides 4 and 8, which IRNet "
                f"reads, its taps have stride {', '.join(map(str, found))}: choose another "
                "backbone, or a method without boundaries"
            )
        backbone.set_field_of_view(1)
        backbone.requires_grad_(False)
        self.feature_stride = self.strides[FINE]
        channels = [backbone.tap_channels[tap] for tap in self.taps]
        self.boundary_layers = nn.ModuleList(
            _layer(count, BOUNDARY_CHANNELS, BOUNDARY_GROUPS) for count in channels
        )
        self.boundary = nn.Conv2d(len(channels) * BOUNDARY_CHANNELS, 1, 1)
        self.displacement = (
            DisplacementBranch(channels, self.strides, align_corners) if displacement else None
        )
        self.register_buffer("mean_displacement", torch.zeros(2))
        # Only displacements learn at the rate of new layers; boundaries at the base rate.
        mark_new(self, False)
        if self.displacement is not None:
            mark_new(self.displacement)

    @classmethod
    def old_arguments(cls, old: Mapping[str, Any]) -> dict[str, Any]:
        """See `Network`."""
        return {
            "align_corners": old["align"] == "corners",
            "displacement": old["head"] == "displacement",
        }

    def traced(self) -> tuple[Callable[[Mapping[str, Tensor]], Any], tuple[str, ...]]:
        """See `Network`."""
        names = ("boundary",) if self.displacement is None else ("boundary", "displacement")
        return self.read_mirrored, names

    def read(self, taps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute maps on the grid of stride 4.

        Returns:
            `boundary` (B, 1, h, w), logits; with its branch also `displacement` (B, 2, h, w), (dy,
            dx) in cells from each cell to the centre of its object.
        """
        maps = self._frozen(taps)
        result = {"boundary": self.boundary_of(maps)}
        if self.displacement is not None:
            result["displacement"] = self.displacement_of(maps)
        return result

    def read_mirrored(self, taps: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Compute maps of images and their mirrors, which are the second half of the batch.

        Returns:
            Boundary logits (2B, 1, h, w) and, with that branch, displacements (B, 2, h, w) of the
            first half, as displacements do not need the mirrors.
        """
        maps = self._frozen(taps)
        boundary = self.boundary_of(maps)
        if self.displacement is None:
            return (boundary,)
        return boundary, self.displacement_of([taken[: taken.shape[0] // 2] for taken in maps])

    def boundary_logits(self, pixels: Tensor, inside: Tensor | None = None) -> Tensor:
        """`forward(pixels, inside)["boundary"]`, without the work for displacements."""
        return self.boundary_of(self.frozen_maps(pixels, inside))

    def train(self, mode: bool = True) -> "IRNet":
        """Switch the branches to training or back."""
        super().train(mode)
        self.backbone.eval()
        return self

    def frozen_maps(self, pixels: Tensor, inside: Tensor | None = None) -> list[Tensor]:
        """Taps of the backbone, from fine to coarse, which both branches read; see `Network`."""
        return self._frozen(self.backbone(pixels, inside))

    def _frozen(self, taps: Mapping[str, Tensor]) -> list[Tensor]:
        return [taps[tap].detach() for tap in self.taps]

    def boundary_of(self, maps: list[Tensor]) -> Tensor:
        """(B, 1, h, w) logits from `frozen_maps`."""
        parts = [layer(taken) for layer, taken in zip(self.boundary_layers, maps, strict=True)]
        joined = _join(parts, self.strides, maps[FINE], self.feature_stride, self.align_corners)
        logits: Tensor = self.boundary(joined)
        return logits

    def displacement_of(self, maps: list[Tensor]) -> Tensor:
        """(B, 2, h, w) from `frozen_maps`; only of a network with that branch."""
        if self.displacement is None:
            raise ValueError("this IRNet has no branch of displacements")
        displacement: Tensor = self.displacement(maps)
        return (
            displacement if self.training else displacement - self.mean_displacement[:, None, None]
        )


class DisplacementBranch(nn.Module):
    """Coarse taps are mixed at stride 8, and with the fine ones at stride 4."""

    def __init__(self, channels: list[int], strides: list[int], align_corners: bool) -> None:
        super().__init__()
        self.strides, self.align_corners = strides, align_corners
        widths = DISPLACEMENT_CHANNELS
        self.layers = nn.ModuleList(
            _layer(count, width, _groups(width))
            for count, width in zip(channels, widths, strict=True)
        )
        self.mix_coarse = _layer(sum(widths[MIDDLE:]), MIXED_CHANNELS, _groups(MIXED_CHANNELS))
        self.mix = _layer(
            sum(widths[:MIDDLE]) + MIXED_CHANNELS, MIXED_CHANNELS, _groups(MIXED_CHANNELS)
        )
        self.offset = nn.Conv2d(MIXED_CHANNELS, 2, 1, bias=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Taps, from fine to coarse -> (B, 2, h, w) on the grid of stride 4."""
        parts = [layer(taken) for layer, taken in zip(self.layers, maps, strict=True)]
        fine, middle = self.strides[FINE], self.strides[MIDDLE]
        corners = self.align_corners
        coarse = _join(parts[MIDDLE:], self.strides[MIDDLE:], maps[MIDDLE], middle, corners)
        mixed = [*parts[:MIDDLE], self.mix_coarse(coarse)]
        joined = _join(mixed, [*self.strides[:MIDDLE], middle], maps[FINE], fine, corners)
        offsets: Tensor = self.offset(F.relu(self.mix(joined)))
        return offsets


@torch.no_grad()
def image_maps(
    network: IRNet, image: NDArray[np.uint8], *, align: Align, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Boundaries (1, 1, h, w) in [0, 1] and displacements (1, 2, h, w), if learnt, of an image.

    Logits of the image and its mirror are averaged; displacements come from the image alone. Under
    `reference` it is padded with the mean colour to a multiple of the network's stride.

    Deviation from the released code: what is padded is mirrored as well, so that the cells of both
    lie on each other whatever the width. There images were padded, or cut, to 512 x 512.
    """
    pixels, inside = network_pixels(network, image, align, device)
    found = network(pixels, inside)
    rows, columns = _own_cells(network, image, align, found["boundary"])
    boundary = _mirrored_mean(network, pixels, inside, found["boundary"])[..., :rows, :columns]
    if "displacement" not in found:
        return boundary, None
    return boundary, found["displacement"].float()[..., :rows, :columns]


@torch.no_grad()
def image_boundary(
    network: IRNet, image: NDArray[np.uint8], *, align: Align, device: torch.device
) -> Tensor:
    """The boundaries of `image_maps` without the work for displacements."""
    pixels, inside = network_pixels(network, image, align, device)
    logits = network.boundary_logits(pixels, inside)
    rows, columns = _own_cells(network, image, align, logits)
    return _mirrored_mean(network, pixels, inside, logits)[..., :rows, :columns]


def _mirrored_mean(network: IRNet, pixels: Tensor, inside: Tensor, logits: Tensor) -> Tensor:
    """Probabilities from the logits of pixels, averaged with those of their mirror."""
    mirrored = network.boundary_logits(pixels.flip(3), inside.flip(3)).flip(3)
    return ((logits + mirrored).float() / 2).sigmoid()


def _own_cells(
    network: IRNet, image: NDArray[np.uint8], align: Align, maps: Tensor
) -> tuple[int, int]:
    """Rows and columns of the cells that are not padding."""
    if align == "corners":
        return maps.shape[-2], maps.shape[-1]
    return grid_size((image.shape[0], image.shape[1]), network.feature_stride)


def network_pixels(
    network: IRNet, image: NDArray[np.uint8], align: Align, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(1, 3, H', W') pixels and (1, 1, H', W') which of them show the image; under `reference` the
    network's stride divides the sides."""
    pixels = image_tensor(image, device)
    stride = network.backbone.output_stride
    if align == "corners":
        size = scaled_size((image.shape[0], image.shape[1]), 1.0, align, stride)
        return padded(resize(pixels, size, align), 1)
    return padded(pixels, stride)


def _layer(in_channels: int, out_channels: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.GroupNorm(groups, out_channels)
    )


def _groups(width: int) -> int:
    return 8 if width < 128 else 16


def _join(
    parts: list[Tensor], strides: list[int], on: Tensor, stride: int, align_corners: bool
) -> Tensor:
    """Parts on the grid of a tap, behind a ReLU, one after the other."""
    grid = (on.shape[-2], on.shape[-1])
    resized = [
        F.relu(_to_grid(part, own / stride, grid, align_corners))
        for part, own in zip(parts, strides, strict=True)
    ]
    return torch.cat(resized, dim=1)


def _to_grid(part: Tensor, ratio: float, grid: tuple[int, int], align_corners: bool) -> Tensor:
    if ratio == 1:
        return part
    if align_corners or ratio < 1:
        return F.interpolate(part, grid, mode="bilinear", align_corners=align_corners)
    larger = F.interpolate(part, scale_factor=ratio, mode="bilinear", align_corners=False)
    return larger[..., : grid[0], : grid[1]]


def walk_settings(recipe: IRNetRecipe) -> WalkSettings:
    """The recipe's walk as the runtime takes it."""
    on_grid = recipe.cam.map_stride == STRIDE
    return WalkSettings.of_section(recipe.walk.model_dump(), recipe.cam.align, maps_on_grid=on_grid)


def read(
    network: IRNet, image: NDArray[np.uint8], recipe: IRNetRecipe, device: torch.device
) -> Tensor:
    """(1, 1, h, w) boundaries of an image."""
    return image_boundary(network, image, align=recipe.cam.align, device=device)


def affinities(boundary: Tensor, recipe: IRNetRecipe) -> Affinities:
    """Affinities of an image, and 1 minus its boundaries if they damp its CAMs."""
    return boundary_affinities(boundary, walk_settings(recipe))


def maps(
    network: IRNet, image: NDArray[np.uint8], recipe: IRNetRecipe, device: torch.device
) -> dict[str, Tensor]:
    """What the exported graph gives: `boundary` and, if it is learnt, `displacement`."""
    boundary, displacement = image_maps(network, image, align=recipe.cam.align, device=device)
    found = {"boundary": boundary}
    return found if displacement is None else found | {"displacement": displacement}


SOURCE = AffinitySource("boundary", "irnet", IRNet, read, affinities, maps, walk_settings)
