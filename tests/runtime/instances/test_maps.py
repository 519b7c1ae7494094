"""Maps of tiles put together: as those of the whole image, wherever the tiles were cut."""

from dataclasses import replace

import numpy as np
import torch
from instance_scenes import ideal_displacement, outline, score_maps, walk_settings
from pytest import mark

from wsss.runtime.bulk.tiling import Cuts
from wsss.runtime.instances.grouping import group_instances
from wsss.runtime.instances.maps import InstanceMaps, Span, TiledMaps, group_maps
from wsss.runtime.instances.settings import InstanceSettings
from wsss.runtime.io.score_maps import ScoreMaps
from wsss.runtime.refine.geometry import grid_size
from wsss.runtime.refine.grid_cells import cell_centres, cells_at

STRIDE = 4


def spans(length, longest):
    cuts = Cuts.of(length, longest)
    return [Span(cuts.tile(i), cuts.window(i)) for i in range(len(cuts.starts))]


def plane_of(function, size, align):
    """A function of (y, x) in pixels at the centres of the grid of an image."""
    grid = grid_size(size, STRIDE, align)
    y, x = (cell_centres(*axis, align) for axis in zip(grid, size, strict=True))
    return np.asarray(function(y[:, None], x[None]), np.float32)


def maps_of(functions, size, align, classes=(2, 5)):
    """Functions of boundary, dy, dx and two classes -> what a model says of an image."""
    boundary, down, right, *scores = (plane_of(each, size, align) for each in functions)
    cams = ScoreMaps(np.array(classes, np.int64), np.stack(scores), size)
    walk = walk_settings(align=align)
    displacement = torch.from_numpy(np.stack([down, right]))
    return InstanceMaps(cams, torch.from_numpy(boundary[None]), displacement, walk, SETTINGS)


def moved(function, rows, columns):
    return lambda y, x: function(y + rows.pixels.start, x + columns.pixels.start)


SETTINGS = InstanceSettings()
SIZES = [(203, 318), (64, 400), (301, 77), (9, 500)]
RAMPS = (
    lambda y, x: (y + 2 * x) / 2000,
    lambda y, x: y / 9 - x / 7,
    lambda y, x: 3 + x / 5 + 0 * y,
    lambda y, x: (700 - x) / 700 + 0 * y,
    lambda y, x: y / 700 + 0 * x,
)


@mark.parametrize("align", ["reference", "corners"])
@mark.parametrize("length", [1, 2, 13, 64, 65, 66, 67, 400])
def test_centres_of_cells_are_where_geometry_puts_them(length, align):
    (count, _) = grid_size((length, length), STRIDE, align)
    centres = cell_centres(count, length, align)
    np.testing.assert_allclose(cells_at(centres, count, length, align), np.arange(count))
    expected = np.arange(count) * STRIDE + (1.5 if align == "reference" else 0)
    if length % STRIDE == (0 if align == "reference" else 1):
        np.testing.assert_allclose(centres, expected)


@mark.parametrize("align", ["reference", "corners"])
@mark.parametrize("size", SIZES)
def test_ramps_stay_ramps_wherever_tiles_are_cut(size, align):
    """What is linear between cells is the same on any grid; beyond the outermost cell of a tile
    there is nothing, so there it may be off by half a cell, where windows count next to nothing."""
    whole = TiledMaps(size)
    rows, columns = spans(size[0], 120), spans(size[1], 120)
    assert len(rows) * len(columns) > 1
    for y in rows:
        for x in columns:
            tile = (len(y.window), len(x.window))
            whole.add(y, x, maps_of([moved(each, y, x) for each in RAMPS], tile, align))
    found, expected = whole.whole(), maps_of(RAMPS, size, align)
    assert found.boundary.shape == expected.boundary.shape
    assert found.cams.classes.tolist() == [2, 5] and found.cams.size == size
    assert found.walk == replace(expected.walk, maps_on_grid=True)
    # The steepest falls by 1 / 5 a pixel, and grids of corners stretch by up to half a cell.
    inside = slice(None), slice(1, -1), slice(1, -1)
    for one, other, steepest in (
        (found.boundary, expected.boundary, 2 / 2000),
        (found.displacement, expected.displacement, 1 / 5),
        (found.cams.scores, expected.cams.scores, 1 / 700),
    ):
        one, other = np.asarray(one)[inside], np.asarray(other)[inside]
        np.testing.assert_allclose(one, other, atol=0.02 * steepest * STRIDE)


@mark.parametrize("align", ["reference", "corners"])
@mark.parametrize("size", [(65, 98), (66, 97), (64, 67), (1, 2), (5, 6)])
def test_one_tile_over_the_whole_image_is_as_it_was(size, align):
    """To the outermost cells, whose centres may lie beyond the image."""
    generator = np.random.default_rng(0)
    planes = generator.random((5, *grid_size(size, STRIDE, align)), np.float32)
    cams = ScoreMaps(np.array([2, 5]), planes[3:], size)
    boundary, displacement = torch.from_numpy(planes[:1]), torch.from_numpy(planes[1:3])
    tiled = TiledMaps(size)
    (rows,), (columns,) = (spans(length, 120) for length in size)
    walk = walk_settings(align=align)
    tiled.add(rows, columns, InstanceMaps(cams, boundary, displacement, walk, SETTINGS))
    whole = tiled.whole()
    np.testing.assert_allclose(whole.boundary, boundary, atol=1e-6)
    np.testing.assert_allclose(whole.displacement, displacement, atol=1e-6)
    np.testing.assert_allclose(whole.cams.scores, cams.scores, atol=1e-6)


def drawn(size):
    """Objects of two classes on the grid, one of them across all of it."""
    objects = np.zeros(size, int)
    objects[4:14, 5:-6] = 1
    objects[20:36, 6:30], objects[20:36, 30:54] = 2, 3
    objects[42:-4, 10:34] = 4
    return objects, {1: 4, 2: 4, 3: 4, 4: 0}


def test_an_object_across_tiles_is_one_instance():
    """Tiles that begin at whole cells: then nothing is between two of them, and nothing differs."""
    objects, class_of = drawn((64, 120))
    cams = score_maps(objects, class_of)
    boundary, displacement = outline(objects), ideal_displacement(objects)
    walk = walk_settings()
    expected = group_instances(cams, boundary, displacement, walk, SETTINGS)
    assert len(expected) == 4
    rows = [Span(slice(0, 160), ramp(160, 0, 64)), Span(slice(96, 256), ramp(160, 64, 0))]
    starts = (0, 112, 224, 320)
    columns = [
        Span(slice(x, x + 160), ramp(160, before, after))
        for x, before, after in zip(starts, (0, 48, 48, 64), (48, 48, 64, 0), strict=True)
    ]
    tiled = TiledMaps(cams.size)
    for y in rows:
        for x in columns:
            cells = tuple(slice(s.pixels.start // 4, s.pixels.stop // 4) for s in (y, x))
            scores = np.ascontiguousarray(cams.scores[(slice(None), *cells)])
            there = scores.any((1, 2))  # a class may be found in some tiles alone
            part = ScoreMaps(cams.classes[there], scores[there], (160, 160))
            planes = boundary[(slice(None), *cells)], displacement[(slice(None), *cells)]
            tiled.add(y, x, InstanceMaps(part, *planes, walk, SETTINGS))
    whole = tiled.whole()
    np.testing.assert_allclose(whole.cams.scores, cams.scores, atol=1e-6)
    np.testing.assert_allclose(whole.displacement, displacement, atol=1e-5)
    (found,) = group_maps([whole])
    assert found.classes.tolist() == expected.classes.tolist()
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def ramp(length, before, after):
    """(length,) weights that rise over `before` pixels and fall over `after`."""
    window = np.ones(length, np.float32)
    window[:before] = (np.arange(before) + 0.5) / max(1, before)
    window[length - after :] = 1 - (np.arange(after) + 0.5) / max(1, after)
    return window


@mark.parametrize("align", ["reference", "corners"])
@mark.parametrize("cam_stride", [4, 8])
def test_tiles_without_any_class_make_an_image_without_instances(align, cam_stride):
    whole = TiledMaps((40, 130))
    walk = walk_settings(align=align, maps_on_grid=cam_stride == STRIDE)
    for x in spans(130, 80):
        size = (40, len(x.window))
        scores = np.zeros((0, *grid_size(size, cam_stride, align)), np.float32)
        cams = ScoreMaps(np.zeros(0, np.int64), scores, size)
        grid = grid_size(size, STRIDE, align)
        maps = torch.zeros(1, *grid), torch.zeros(2, *grid)
        whole.add(spans(40, 80)[0], x, InstanceMaps(cams, *maps, walk, SETTINGS))
    (found,) = group_maps([whole.whole()])
    assert len(found) == 0 and found.ids.shape == (40, 130) and not found.ids.any()


def test_no_images_have_no_instances():
    assert group_maps([]) == []
