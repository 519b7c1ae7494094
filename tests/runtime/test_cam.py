"""Multi-scale CAMs and their normalisation against loops."""

import numpy as np
import pytest
import torch

from wsss.runtime.refine.cam import multi_scale_cam, normalise_cam
from wsss.runtime.refine.geometry import (
    grid_size,
    reduce_by_mean,
    resize,
    scaled_size,
    to_full_size,
)


def naive_normalise(activation, classes):
    planes = []
    for index in sorted(classes):
        plane = activation[index].numpy().astype(np.float64)
        highest = max(float(value) for value in plane.flat)
        planes.append([[float(value) / (highest + 1e-5) for value in row] for row in plane])
    return np.asarray(planes)


@pytest.mark.parametrize("classes", [[2], [3, 0], [0, 1, 2, 3]])
def test_normalisation_is_per_class_by_the_maximum(classes):
    activation = torch.rand(4, 5, 7, generator=torch.Generator().manual_seed(0)) * 30
    maps = normalise_cam(activation, classes, (40, 56))
    np.testing.assert_allclose(maps.scores, naive_normalise(activation, classes), rtol=1e-6)
    assert maps.classes.tolist() == sorted(classes)
    assert maps.size == (40, 56)


def test_a_class_that_never_responds_stays_zero():
    maps = normalise_cam(torch.zeros(3, 4, 4), [1], (8, 8))
    assert not maps.scores.any()


def test_no_class_gives_no_map():
    maps = normalise_cam(torch.rand(3, 4, 6), [], (8, 12))
    assert maps.scores.shape == (0, 4, 6)


class Blocks:
    """Mean red of each 4 x 4 block as class 0, its distance from the left edge as class 1."""

    def __call__(self, pixels):
        red = reduce_by_mean(pixels[:, :1], 4)
        columns = torch.arange(red.shape[-1], dtype=torch.float32).expand_as(red)
        return torch.cat([red, columns], dim=1)


def test_scales_and_mirrors_are_summed():
    image = np.random.default_rng(0).integers(0, 256, (13, 18, 3), dtype=np.uint8)
    scales = (1.0, 0.5, 2.0)
    result = multi_scale_cam(
        Blocks(), image, scales=scales, flip=True, map_stride=4, stride=4, align="reference"
    )
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = torch.zeros(1, 2, 4, 5)
    for scale in scales:
        size = (round(13 * scale), round(18 * scale))
        scaled = torch.nn.functional.interpolate(pixels, size, mode="bilinear")
        for mirrored in (False, True):
            maps = Blocks()(scaled.flip(-1) if mirrored else scaled)
            maps = maps.flip(-1) if mirrored else maps
            expected += torch.nn.functional.interpolate(maps, (4, 5), mode="bilinear")
    torch.testing.assert_close(result, expected[0], rtol=1e-5, atol=1e-3)


def test_corner_grid_puts_cell_i_at_pixel_i_times_stride():
    assert scaled_size((33, 49), 1.0, "corners", 16) == (33, 49)
    assert scaled_size((40, 40), 1.0, "corners", 16) == (33, 33)
    assert grid_size((33, 49), 16, "corners") == (3, 4)
    rows = torch.arange(0, 33, dtype=torch.float32)[:, None].expand(33, 33)
    cells = rows[::16, ::16][None, None]
    torch.testing.assert_close(resize(cells, (33, 33), "corners")[0, 0], rows)


def test_full_size_of_the_reference_grid_is_cut_not_stretched():
    maps = torch.arange(6.0).reshape(1, 2, 3)
    full = to_full_size(maps, (15, 22), "reference")
    expected = torch.nn.functional.interpolate(maps[None], (16, 24), mode="bilinear")
    torch.testing.assert_close(full, expected[0, :, :15, :22])
    assert to_full_size(torch.zeros(0, 2, 3), (15, 22), "reference").shape == (0, 15, 22)


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (1, 1)])
def test_block_means_count_what_lies_outside_as_zero(size):
    plane = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(1))
    reduced = reduce_by_mean(plane, 4)
    for row in range(reduced.shape[2]):
        for column in range(reduced.shape[3]):
            block = plane[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            expected = block.sum(dim=(1, 2)) / 16
            torch.testing.assert_close(reduced[0, :, row, column], expected)
