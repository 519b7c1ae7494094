"""Dense CRF: mean field with a smoothness and an appearance kernel over all pairs of pixels.

Source: Krähenbühl and Koltun, "Efficient inference in fully connected CRFs with Gaussian edge
potentials" (NIPS 2011), with the defaults of the published code: Potts compatibility, diagonal
kernels, symmetric normalisation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ConfigError, DataError, ShapeError
from .permutohedral import Lattice

_LEAST_SCORE = 1e-5
"""Scores below this count as this, so that no label is ruled out."""
_CPU_VALUES = 4 * 1024 * 1024
"""Values that a CPU filters together; more leave the cache and the allocator's reused blocks."""
_VECTOR = 16
"""Labels from which a softmax along contiguous labels is the faster one on a CPU."""


@dataclass(frozen=True)
class CrfSettings:
    """Kernels and iterations of the dense CRF.

    Raises:
        ConfigError: a value is out of its range.
    """

    iterations: int = 10
    """Mean-field updates; 0 returns the softmax of the negative unary."""
    gaussian_sxy: float = 3.0
    """Standard deviation of the smoothness kernel, in pixels."""
    gaussian_compat: float = 3.0
    """Weight of the smoothness kernel, without unit."""
    bilateral_sxy: float = 80.0
    """Standard deviation of the appearance kernel in the image plane, in pixels."""
    bilateral_srgb: float = 13.0
    """Standard deviation of the appearance kernel in colour, in steps of 0..255."""
    bilateral_compat: float = 10.0
    """Weight of the appearance kernel, without unit."""

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ConfigError(f"`iterations` is {self.iterations}, must be at least 0")
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"`{name}` is {getattr(self, name)}, must be greater than 0")
        for name in ("gaussian_compat", "bilateral_compat"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"`{name}` is {getattr(self, name)}, must be at least 0")


class DenseCrf:
    """Refine scores or labels of one image along its edges with a dense CRF.

    The filters of the image are built once and serve any number of unaries. A unary is the negative
    log likelihood of each label at each pixel, such as `-scores.clamp(1e-5, 1).log()`.

    Args:
        image: (H, W, 3) uint8 RGB with H, W >= 1.
        settings: kernels and iterations; default: `CrfSettings()`.
        device: torch device that computes and holds the results.

    Raises:
        ShapeError: `image` is not (H, W, 3).
        DataError: `image` is not uint8.
        ConfigError: a kernel is too narrow for an image of this size.
    """

    @torch.no_grad()
    def __init__(
        self,
        image: NDArray[np.uint8],
        settings: CrfSettings | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ShapeError(f"`image` is {image.shape}, expected (H, W, 3) with H, W >= 1")
        if image.dtype != np.uint8:
            raise DataError(f"`image` is {image.dtype}, expected uint8 in 0..255")
        settings = settings or CrfSettings()
        self._size = (image.shape[0], image.shape[1])
        self._device = torch.device(device)
        self._iterations = settings.iterations
        self._kernels: list[tuple[Lattice, float]] = []
        if settings.iterations and settings.gaussian_compat:
            lattice = _smoothness_lattice(self._size, settings.gaussian_sxy, self._device)
            self._kernels.append((lattice, settings.gaussian_compat))
        if settings.iterations and settings.bilateral_compat:
            features = _appearance_features(image, settings.bilateral_sxy, settings.bilateral_srgb)
            lattice = _normalised_lattice(features, self._device)
            self._kernels.append((lattice, settings.bilateral_compat))

    def refine(self, unary: Tensor) -> Tensor:
        """Refine one unary.

        Args:
            unary: (L, H, W) floating, negative log likelihoods of L labels, finite.

        Returns:
            (L, H, W) float32 probabilities, which sum to 1 over the labels.

        Raises:
            ShapeError: `unary` is not (L, H, W) with the size of the image.
            DataError: `unary` holds NaN or infinity.
        """
        return self.refine_many([unary])[0]

    @torch.no_grad()
    def refine_many(self, unaries: Sequence[Tensor]) -> list[Tensor]:
        """Refine several unaries together, which is faster than one at a time.

        Args:
            unaries: (L, H, W) each, as `refine` takes them; L may differ.

        Returns:
            The probabilities of each, as `refine` returns them.

        Raises:
            ShapeError, DataError: as for `refine`.
        """
        for unary in unaries:
            self._require_unary(unary)
        results: list[Tensor] = []
        for group in self._groups(unaries):
            results += self._mean_field(group)
        return results

    def _mean_field(self, unaries: Sequence[Tensor]) -> Sequence[Tensor]:
        counts = [len(unary) for unary in unaries]
        stack = torch.cat([unary.to(self._device, torch.float32) for unary in unaries])
        # Pixels are the rows from here on, so that the filters move whole rows.
        preference = stack.flatten(1).neg().t().contiguous()  # (H * W, sum of L)
        probabilities = _softmax(preference, counts)
        for _ in range(self._iterations):
            energy = preference.clone()
            for lattice, compat in self._kernels:
                energy.add_(lattice.filter(probabilities), alpha=compat)
            probabilities = _softmax(energy, counts)
        planes = probabilities.t().contiguous().view(-1, *self._size)
        return torch.split(planes, counts)

    def _groups(self, unaries: Sequence[Tensor]) -> list[list[Tensor]]:
        """Neighbours in the list that are filtered together."""
        if self._device.type != "cpu":
            return [list(unaries)] if unaries else []
        groups: list[list[Tensor]] = []
        filled = 0
        for unary in unaries:
            if not groups or filled + unary.numel() > _CPU_VALUES:
                groups.append([])
                filled = 0
            groups[-1].append(unary)
            filled += unary.numel()
        return groups

    def _require_unary(self, unary: Tensor) -> None:
        if unary.ndim != 3 or unary.shape[1:] != self._size or not len(unary):
            raise ShapeError(
                f"`unary` is {tuple(unary.shape)}, expected (L, {self._size[0]}, {self._size[1]})"
                " with L >= 1"
            )
        if not bool(torch.isfinite(unary).all()):
            raise DataError("`unary` holds NaN or infinity, expected finite values")


def unary_from_scores(scores: Tensor) -> Tensor:
    """-log of (L, H, W) scores in [0, 1], which need not sum to 1."""
    return -scores.float().clamp(_LEAST_SCORE, 1).log()


def unary_from_labels(labels: Tensor, num_labels: int, certainty: float) -> Tensor:
    """(num_labels, H, W) unary of a labelling that is right with probability `certainty`.

    Args:
        labels: (H, W) whole numbers in 0..num_labels - 1, none of them exempt.
        num_labels: number of labels in this image, background included.
        certainty: in (0, 1); what is left is shared by the other labels.

    Raises:
        DataError: a label outside the range.
        ConfigError: certainty outside the range.
    """
    if not 0 < certainty < 1:
        raise ConfigError(f"`certainty` is {certainty}, must be greater than 0 and less than 1")
    low, high = (int(bound) for bound in torch.aminmax(labels))
    if low < 0 or high >= num_labels:
        raise DataError(f"`labels` span {low} to {high}, expected 0 to {num_labels - 1}")
    other = torch.tensor((1 - certainty) / max(num_labels - 1, 1), device=labels.device).log()
    given = torch.tensor(certainty, device=labels.device).log()
    planes = torch.arange(num_labels, device=labels.device)[:, None, None]
    return -torch.where(planes == labels, given, other)


def unary_from_logits(logits: Tensor) -> Tensor:
    """(L, H, W) unary of logits: -log softmax up to a constant at each pixel."""
    return -logits


def _softmax(energy: Tensor, counts: list[int]) -> Tensor:
    """(N, sum of counts) -> the same, softmax within each group of columns."""
    if len(set(counts)) > 1:
        groups = [_softmax(group, [group.shape[1]]) for group in torch.split(energy, counts, dim=1)]
        return torch.cat(groups, dim=1)
    if energy.device.type == "cpu" and counts[0] < _VECTOR:
        planes = energy.t().contiguous().view(len(counts), counts[0], len(energy))
        return planes.softmax(1).flatten(0, 1).t().contiguous()
    return energy.reshape(len(energy), len(counts), counts[0]).softmax(-1).flatten(1)


@lru_cache(maxsize=4)
def _smoothness_lattice(size: tuple[int, int], sxy: float, device: torch.device) -> Lattice:
    # It depends on the size only, and data sets have few sizes.
    return _normalised_lattice(_position_features(size, sxy), device)


def _normalised_lattice(features: NDArray[np.float32], device: torch.device) -> Lattice:
    lattice = Lattice(torch.from_numpy(features).to(device))
    lattice.normalise()
    return lattice


# Features are divided by numpy: torch may multiply by the reciprocal, which rounds differently.


def _position_features(size: tuple[int, int], sxy: float) -> NDArray[np.float32]:
    """(H * W, 2) column and row of every pixel, in standard deviations."""
    height, width = size
    features = np.empty((height, width, 2), np.float32)
    features[..., 0] = np.arange(width, dtype=np.float32) / np.float32(sxy)
    features[..., 1] = (np.arange(height, dtype=np.float32) / np.float32(sxy))[:, None]
    return features.reshape(-1, 2)


def _appearance_features(image: NDArray[np.uint8], sxy: float, srgb: float) -> NDArray[np.float32]:
    """(H * W, 5) column, row, red, green and blue of every pixel, in standard deviations."""
    positions = _position_features((image.shape[0], image.shape[1]), sxy)
    colours = (np.arange(256, dtype=np.float32) / np.float32(srgb))[image.reshape(-1, 3)]
    return np.concatenate([positions, colours], axis=1)
