"""The guided filter against loops over windows, and what it does to edges."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wsss.errors import ConfigError, DataError, ShapeError
from wsss.runtime.refine.guided_filter import box_mean, guided_filter

Array = NDArray[np.float64]


def window(row: int, column: int, size: tuple[int, int], radius: int) -> list[tuple[int, int]]:
    """Pixels of the image within a window."""
    rows = range(max(0, row - radius), min(size[0], row + radius + 1))
    columns = range(max(0, column - radius), min(size[1], column + radius + 1))
    return list(itertools.product(rows, columns))


def naive_filter(plane: Array, guide: Array, radius: int, eps: float) -> Array:
    """(H, W) and (H, W, 3) -> (H, W): least squares in every window, then means of windows."""
    size = (plane.shape[0], plane.shape[1])
    slopes, offsets = np.zeros((*size, 3)), np.zeros(size)
    for place in np.ndindex(size):
        pixels = window(*place, size, radius)
        colours = np.array([guide[p] for p in pixels])
        values = np.array([plane[p] for p in pixels])
        centred = colours - colours.mean(0)
        covariance = centred.T @ centred / len(pixels) + eps * np.eye(3)
        both = centred.T @ (values - values.mean()) / len(pixels)
        slopes[place] = np.linalg.solve(covariance, both)
        offsets[place] = values.mean() - slopes[place] @ colours.mean(0)
    result = np.zeros(size)
    for place in np.ndindex(size):
        pixels = window(*place, size, radius)
        slope = np.mean([slopes[p] for p in pixels], 0)
        result[place] = slope @ guide[place] + np.mean([offsets[p] for p in pixels])
    return result


def drawn(height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, 3, H, W) maps and (2, 3, H, W) guides, float64."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    guide = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    return maps, guide


@pytest.mark.parametrize("radius", [1, 2, 8])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 5), (9, 11)])
def test_filter_equals_loops(size: tuple[int, int], radius: int) -> None:
    maps, guide = drawn(*size)
    found = guided_filter(maps, guide, radius=radius, eps=1e-3)
    single = guided_filter(maps.float(), guide.float(), radius=radius, eps=1e-3)
    for image, plane in np.ndindex(2, 3):
        colours = guide[image].permute(1, 2, 0).numpy()
        expected = naive_filter(maps[image, plane].numpy(), colours, radius, 1e-3)
        np.testing.assert_allclose(found[image, plane], expected, atol=1e-9)
        # float32: differences of squares near 1 against an eps of 1e-3.
        np.testing.assert_allclose(single[image, plane], expected, atol=2e-3)


def test_box_mean_is_over_pixels_that_exist() -> None:
    planes = torch.arange(12.0).view(1, 1, 3, 4)
    assert float(box_mean(planes, 1)[0, 0, 0, 0]) == (0 + 1 + 4 + 5) / 4
    assert float(box_mean(planes, 1)[0, 0, 1, 3]) == (2 + 3 + 6 + 7 + 10 + 11) / 6
    np.testing.assert_allclose(box_mean(planes, 9), 5.5, rtol=1e-6)


def test_constants_stay_and_companions_do_not_matter() -> None:
    maps, guide = drawn(9, 8)
    constant = guided_filter(torch.full_like(maps, 0.7), guide, radius=2, eps=1e-3)
    np.testing.assert_allclose(constant, 0.7, atol=1e-9)
    both = guided_filter(maps, guide, radius=2, eps=1e-3)
    alone = guided_filter(maps[1:, :1], guide[1:], radius=2, eps=1e-3)
    np.testing.assert_allclose(both[1:, :1], alone, atol=1e-12)
    assert guided_filter(maps[:, :0], guide, radius=2, eps=1e-3).shape == (2, 0, 9, 8)


def test_a_blurred_map_snaps_to_the_edge_of_the_image() -> None:
    guide = torch.zeros(1, 3, 24, 24)
    guide[..., 12:] = torch.tensor([0.9, 0.2, 0.4])[None, :, None, None]
    blurred = torch.linspace(0, 1, 24).expand(1, 1, 24, 24).contiguous()
    sharp = guided_filter(blurred, guide, radius=8, eps=1e-3)[0, 0, 12]
    assert float(sharp[12] - sharp[11]) > 5 * float(blurred[0, 0, 0, 12] - blurred[0, 0, 0, 11])
    smooth = guided_filter(blurred, guide, radius=8, eps=10.0)[0, 0, 12]
    assert float(smooth[12] - smooth[11]) < 0.1


def test_what_does_not_fit_is_refused() -> None:
    maps, guide = drawn(4, 5)
    with pytest.raises(ShapeError, match=r"`guide` \(2, 3, 4, 4\)"):
        guided_filter(maps, guide[..., 1:], radius=1, eps=1e-3)
    with pytest.raises(DataError, match="uint8"):
        guided_filter(maps, guide.to(torch.uint8), radius=1, eps=1e-3)
    for wrong in ({"radius": 0, "eps": 1e-3}, {"radius": 1, "eps": 0.0}):
        with pytest.raises(ConfigError, match="at least 1 and greater than 0"):
            guided_filter(maps, guide, **wrong)  # type: ignore[arg-type]
