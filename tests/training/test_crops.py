"""Reducing seeds to the grid of a network, against a loop over its blocks."""

import numpy as np
import pytest
import torch

from wsss.training.methods.shared.crops import nearest_labels, vote_labels


def naive_vote(label_map, stride, grid, start):
    result = np.full(grid, 255, np.uint8)
    for row in range(grid[0]):
        for column in range(grid[1]):
            counts = {}
            for y in range(row * stride - start, (row + 1) * stride - start):
                for x in range(column * stride - start, (column + 1) * stride - start):
                    inside = 0 <= y < label_map.shape[0] and 0 <= x < label_map.shape[1]
                    label = int(label_map[y, x]) if inside else 255
                    counts[label] = counts.get(label, 0) + 1
            background, undecided = counts.get(0, 0), counts.get(255, 0)
            objects = {k: n for k, n in counts.items() if k not in (0, 255)}
            best = max(objects, key=lambda k: (objects[k], -k), default=None)
            if best is not None and objects[best] > background + undecided:
                result[row, column] = best
            elif background > max(sum(objects.values()), undecided):
                result[row, column] = 0
    return result


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (17, 15), (9, 30), (1, 1)])
def test_votes(size, corners):
    generator = np.random.default_rng(3)
    label_map = generator.choice(np.array([0, 0, 0, 1, 1, 7, 255], np.uint8), size)
    grid = (-(-size[0] // 4), -(-size[1] // 4))
    expected = naive_vote(label_map, 4, grid, 2 if corners else 0)
    np.testing.assert_array_equal(vote_labels(label_map, 4, grid, corners=corners), expected)


def test_nearest_labels_take_the_pixel_of_their_cell():
    label_map = np.arange(35, dtype=np.uint8).reshape(5, 7)
    expected = [[label_map[y, x] for x in (0, 3, 6)] for y in (0, 3)]
    np.testing.assert_array_equal(nearest_labels(label_map, 3, corners=True), expected)
    middle = nearest_labels(label_map, 3, corners=False)
    np.testing.assert_array_equal(middle, label_map[[1, 4]][:, [1, 4, 6]])


def test_padding_of_a_crop_is_zero_behind_the_normalisation():
    from wsss.training.backbones.build import build_backbone
    from wsss.training.methods.shared.classifier import CamClassifier
    from wsss.training.methods.shared.crops import inside_pixels

    network = CamClassifier(build_backbone("mobilenetv2"), 2)
    batch = {
        "image": torch.full((2, 3, 6, 6), 200, dtype=torch.uint8),
        "inside": torch.tensor([[1, 2, 5, 6], [0, 0, 6, 6]]),
    }
    pixels = network.backbone.normaliser(batch["image"], inside_pixels(batch))
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[1:5, 2:6] = True
    assert (pixels[0][:, ~inside] == 0).all()
    assert (pixels[0][:, inside] != 0).all()
    assert (pixels[1] != 0).all()
