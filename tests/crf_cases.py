"""Images, unaries and published settings for the tests of the dense CRF."""

import numpy as np
import torch

from wsss.runtime.refine.dense_crf import CrfSettings, unary_from_scores

SIZES = [(1, 1), (1, 7), (5, 1), (3, 4), (7, 5)]
PUBLISHED = {
    "affinity labels": CrfSettings(10, 3, 3, 80, 13, 10),
    "seeds from labels": CrfSettings(10, 3, 3, 50, 5, 10),
    "logits": CrfSettings(5, 3, 3, 80, 13, 10),
    "deeplab": CrfSettings(10, 1, 3, 67, 3, 4),
    "largefov": CrfSettings(1, 3, 3, 32, 13, 10),
}


def random_features(num_points, num_axes, spread=2.0):
    generator = torch.Generator().manual_seed(num_points * 10 + num_axes)
    return torch.randn(num_points, num_axes, generator=generator) * spread


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_unary(labels, height, width, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return unary_from_scores(torch.rand(labels, height, width, generator=generator))


def smooth_scores(labels, height, width, seed=2):
    """Blobs in [0, 1] about 40 pixels wide, like class activation maps at full size."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, labels, height // 20 + 2, width // 20 + 2, generator=generator) ** 2
    fine = torch.nn.functional.interpolate(
        coarse, size=(height, width), mode="bicubic", align_corners=False
    )
    return fine[0].clamp(0, 1)


def drawn_photograph(height, width):
    """Shaded ellipses on a gradient, with sensor noise."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([60 + rows / 4, 90 + columns / 5, 140 - rows / 5], -1)
    for _ in range(6):
        centre, radii = rng.uniform(0, (height, width)), rng.uniform(20, 70, 2)
        inside = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1
        image[inside] = rng.uniform(30, 220, 3) + (rows[inside, None] - centre[0]) / 3
    return (image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)


def same_labels(planes, expected):
    """Share of pixels with the same argmax."""
    return float((planes.argmax(0) == expected.argmax(0)).double().mean())
