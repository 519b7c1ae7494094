"""Instances made slowly and plainly: float64, one cell, one pixel and one plane after the other."""

import itertools
import math

import numpy as np
import reference
import torch


def refine(displacement, steps):
    """(2, h, w) field -> (2, h, w) float64 positions after all steps, not rounded."""
    field = np.asarray(displacement, np.float64)
    _, height, width = field.shape
    result = np.zeros((2, height, width))
    for row, column in itertools.product(range(height), range(width)):
        y, x = float(row), float(column)
        for _ in range(steps):
            dy, dx = (sample(plane, y, x) for plane in field)
            y = min(max(y + dy, 0.0), height - 1.0)
            x = min(max(x + dx, 0.0), width - 1.0)
        result[:, row, column] = y, x
    return result


def sample(plane, y, x):
    """Bilinear value of a plane at (y, x), from the four cells at floor and ceil."""
    down, right = y - math.floor(y), x - math.floor(x)
    value = 0.0
    for row, share in ((math.floor(y), 1 - down), (math.ceil(y), down)):
        value += plane[row, math.floor(x)] * share * (1 - right)
        value += plane[row, math.ceil(x)] * share * right
    return value


def components(labels):
    """4-connected components of equal labels, numbered from 1 by their first cell; 0 stays 0."""
    labels = np.asarray(labels)
    height, width = labels.shape
    result = np.zeros(labels.shape, np.int64)
    count = 0
    for start in itertools.product(range(height), range(width)):
        if labels[start] == 0 or result[start]:
            continue
        count += 1
        waiting = [start]
        result[start] = count
        while waiting:
            row, column = waiting.pop()
            for y, x in (
                (row - 1, column),
                (row + 1, column),
                (row, column - 1),
                (row, column + 1),
            ):
                inside = 0 <= y < height and 0 <= x < width
                if inside and not result[y, x] and labels[y, x] == labels[start]:
                    result[y, x] = count
                    waiting.append((y, x))
    return result


def clusters(displacement, centroids, radius):
    """(h, w) numbers from 0 by first cell: cells with a centroid in the same calm patch."""
    field = np.asarray(displacement, np.float64)
    _, height, width = field.shape
    calm = np.zeros((height, width), np.int64)
    for row, column in itertools.product(range(height), range(width)):
        calm[row, column] = math.hypot(*field[:, row, column]) < radius
    patches = components(calm)
    numbers, result = {}, np.zeros((height, width), np.int64)
    for row, column in itertools.product(range(height), range(width)):
        patch = patches[tuple(int(place) for place in centroids[:, row, column])]
        result[row, column] = numbers.setdefault(patch, len(numbers))
    return result


def boundary_walk(planes, boundary, radius, beta, steps):
    """(n, h, w) damped, then walked by the dense matrix of boundary affinities, borders full."""
    boundary = np.asarray(boundary, np.float64)  # (1, h, w)
    maxima = reference.path_maxima(torch.from_numpy(boundary)[None], radius, "full")[0].numpy()
    return reference.walk(np.asarray(planes) * (1 - boundary), (1 - maxima) ** beta, radius, steps)


def enlarge(plane, size, align):
    """(h, w) -> size of the image; `reference` by whole strides, then cut."""
    if align == "corners":
        return resize(plane, size, align)
    whole = [-(-side // cells) * cells for side, cells in zip(size, plane.shape, strict=True)]
    return resize(plane, whole, align)[: size[0], : size[1]]


def resize(plane, size, align):
    """Bilinear; `reference` meets the outer edges of the cells, `corners` their middles."""
    rows, columns = (
        weights(cells, side, align) for cells, side in zip(plane.shape, size, strict=True)
    )
    return rows @ plane @ columns.T


def weights(cells, side, align):
    """(side, cells): share of each cell in each pixel."""
    result = np.zeros((side, cells))
    for pixel in range(side):
        if align == "reference":
            place = (pixel + 0.5) * cells / side - 0.5
        else:
            place = pixel * (cells - 1) / (side - 1) if side > 1 else 0.0
        place = min(max(place, 0.0), cells - 1.0)
        first = math.floor(place)
        result[pixel, first] += 1 - (place - first)
        result[pixel, min(first + 1, cells - 1)] += place - first
    return result


def instance_planes(scores, parts):
    """(n, h, w) scores times one-hot parts, class by class: n * K planes."""
    count = int(parts.max()) + 1
    return np.stack([plane * (parts == part) for plane in scores for part in range(count)])


def label(planes, classes, size, align, threshold, min_area, scale=None):
    """[(mask, class, score)] of grid planes; `scale` None divides by the greatest full-size value.

    Args:
        classes: class of each plane.
    """
    full = np.stack([enlarge(plane, size, align) for plane in planes])
    full /= scale or full.max() or 1.0
    winners = np.concatenate([np.full((1, *size), threshold), full]).argmax(0)
    found = []
    for number, (plane, index) in enumerate(zip(full, classes, strict=True), start=1):
        segments = components(winners == number)
        for segment in range(1, segments.max() + 1):
            mask = segments == segment
            is_fragment = mask.sum() < min_area * mask.size
            found.append((mask, index, 0.0 if is_fragment else float(plane[mask].max())))
    return found
