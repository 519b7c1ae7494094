"""Slow, obvious versions of what the package computes fast: float64 loops and dense matrices."""

import itertools
import math

import numpy as np
import torch
from torch import Tensor


def half_disc(radius):
    """Offsets (dy, dx) of the partners of a cell, in the published order."""
    span = range(-(radius - 1), radius)
    near = [
        (dy, dx) for dy, dx in itertools.product(span, span) if dy * dy + dx * dx < radius * radius
    ]
    return sorted(offset for offset in near if offset > (0, 0))


def pairs_of_grid(height, width, radius, borders):
    """(plane, from-cell, to-cell) of every pair, cells as (row, column)."""
    pairs = []
    for row, column in itertools.product(range(height), range(width)):
        inner = row <= height - radius and radius - 1 <= column <= width - radius
        if borders == "reference" and not inner:
            continue
        for plane, (dy, dx) in enumerate(half_disc(radius)):
            if row + dy < height and 0 <= column + dx < width:
                pairs.append((plane, (row, column), (row + dy, column + dx)))
    return pairs


def distances(features, radius, borders):
    """(C, h, w) -> (K, h, w) mean absolute differences, infinite where there is no pair."""
    features = np.asarray(features, dtype=np.float64)
    _, height, width = features.shape
    result = np.full((len(half_disc(radius)), height, width), math.inf)
    for plane, first, second in pairs_of_grid(height, width, radius, borders):
        difference = features[:, first[0], first[1]] - features[:, second[0], second[1]]
        result[plane, first[0], first[1]] = np.abs(difference).mean()
    return result


def pair_kinds(label_map, radius, borders):
    """(h, w) -> (K, h, w): 0 both background, 1 same class, 2 different, 3 no statement."""
    label_map = np.asarray(label_map)
    height, width = label_map.shape
    result = np.full((len(half_disc(radius)), height, width), 3)
    for plane, first, second in pairs_of_grid(height, width, radius, borders):
        one, other = int(label_map[first]), int(label_map[second])
        if 255 in (one, other):
            continue
        result[plane, first[0], first[1]] = 2 if one != other else int(one != 0)
    return result


def path_between(first, second):
    """Cells in the bounding box of two cells whose distance to the line through them is < 1."""
    (top, start), (bottom, stop) = first, second
    cells = []
    for row in range(top, bottom + 1):
        for column in range(min(start, stop), max(start, stop) + 1):
            area = (row - top) * (stop - start) - (column - start) * (bottom - top)
            if abs(area) / math.hypot(bottom - top, stop - start) < 1:
                cells.append((row, column))
    return cells


def path_maxima(boundary, radius, borders):
    """(B, 1, h, w) -> (B, K, h, w) float64, 1 where there is no pair."""
    values = boundary[:, 0].double().numpy()
    batch, height, width = values.shape
    result = np.ones((batch, len(half_disc(radius)), height, width))
    for plane, first, second in pairs_of_grid(height, width, radius, borders):
        rows, columns = zip(*path_between(first, second), strict=True)
        result[:, plane, first[0], first[1]] = values[:, rows, columns].max(axis=1)
    return torch.from_numpy(result)


def transition_matrix(affinity, radius):
    """(K, h, w) -> (N, N) float64 whose columns sum to 1, acting on a row vector from the right."""
    affinity = np.asarray(affinity, dtype=np.float64)
    _, height, width = affinity.shape
    weights = np.eye(height * width)
    for plane, first, second in pairs_of_grid(height, width, radius, "full"):
        one, other = first[0] * width + first[1], second[0] * width + second[1]
        weights[one, other] = weights[other, one] = affinity[plane, first[0], first[1]]
    return weights / weights.sum(axis=0)


def walk(scores, affinity, radius, steps):
    """Published walk of one image: (n, h, w) times the dense matrix to the power `steps`."""
    scores = np.asarray(scores, dtype=np.float64)
    matrix = np.linalg.matrix_power(transition_matrix(affinity, radius), steps)
    return (scores.reshape(len(scores), -1) @ matrix).reshape(scores.shape)


def walk_batch(scores: Tensor, affinity: Tensor, radius: int, steps: int) -> Tensor:
    """`walk` over (B, n, h, w) and (B, K, h, w)."""
    walked = [walk(s, a, radius, steps) for s, a in zip(scores, affinity, strict=True)]
    return torch.from_numpy(np.stack(walked))


def changed_share(before, after, threshold):
    """Share of cells with another winner in two stacks (n, h, w), of equal scores the first.

    threshold: of a background in front of scores divided by their greatest; None: the first plane
    is the background.
    """

    def winners(stack):
        greatest = max(float(score) for score in np.asarray(stack).flat)
        found = []
        for row, column in itertools.product(*map(range, stack.shape[1:])):
            scores = [float(plane[row, column]) for plane in stack]
            if threshold is not None:
                scores = [threshold, *(score / (greatest + 1e-5) for score in scores)]
            found.append(scores.index(max(scores)))
        return found

    pairs = list(zip(winners(before), winners(after), strict=True))
    return sum(one != other for one, other in pairs) / len(pairs)


def random_affinity(generator, batch, height, width, radius=5, borders="full"):
    """(B, K, h, w) float64 in [0, 1], 0 where there is no pair."""
    planes = len(half_disc(radius))
    result = torch.zeros(batch, planes, height, width, dtype=torch.float64)
    values = torch.rand(result.shape, generator=generator, dtype=torch.float64)
    for plane, (row, column), _ in pairs_of_grid(height, width, radius, borders):
        result[:, plane, row, column] = values[:, plane, row, column]
    return result


def classification_loss(logits, labels):
    """Binary cross-entropy over classes, mean over the batch."""
    total = 0.0
    for scores, targets in zip(logits.tolist(), labels.tolist(), strict=True):
        per_class = []
        for score, target in zip(scores, targets, strict=True):
            probability = 1 / (1 + math.exp(-score))
            per_class.append(math.log(probability if target else 1 - probability))
        total -= sum(per_class) / len(per_class)
    return total / len(logits)


def affinity_loss(affinity, kinds):
    """L_bg / 4 + L_fg / 4 + L_neg / 2 over the pairs of the whole batch."""
    sums, counts = [0.0] * 3, [1e-5] * 3
    for value, kind in zip(affinity.flatten().tolist(), kinds.flatten().tolist(), strict=True):
        if kind < 3:
            sums[kind] -= math.log(1 + 1e-5 - value if kind == 2 else value + 1e-5)
            counts[kind] += 1
    background, foreground, negative = (s / c for s, c in zip(sums, counts, strict=True))
    return background / 4 + foreground / 4 + negative / 2


def segmentation_loss(logits, labels):
    """Sum of cross-entropies over the pixels of each label, and their number."""
    total, count = [0.0] * logits.shape[1], [0] * logits.shape[1]
    for image, row, column in itertools.product(*map(range, labels.shape)):
        label = int(labels[image, row, column])
        if label != 255:
            scores = logits[image, :, row, column].tolist()
            total[label] += math.log(sum(math.exp(score) for score in scores)) - scores[label]
            count[label] += 1
    return total, count


def pair_errors(displacement, kinds, radius):
    """Summed |D_i - D_j - target| of background (target 0) and foreground (x_j - x_i) pairs.

    Returns:
        (2,) sums, (2,) numbers of absolute values in them, and the gradient of each sum by the
        displacement, 0 where an error is exactly 0.
    """
    displacement = np.asarray(displacement, dtype=np.float64)
    batch, _, height, width = displacement.shape
    sums, counts = np.zeros(2), np.zeros(2)
    gradients = np.zeros((2, *displacement.shape))
    for image, (plane, first, second) in itertools.product(
        range(batch), pairs_of_grid(height, width, radius, "full")
    ):
        kind = int(kinds[image, plane, first[0], first[1]])
        if kind > 1:
            continue
        for axis in range(2):
            target = second[axis] - first[axis] if kind == 1 else 0
            here, there = (displacement[image, axis, y, x] for y, x in (first, second))
            error = here - there - target
            sums[kind] += abs(error)
            counts[kind] += 1
            gradients[kind, image, axis, first[0], first[1]] += np.sign(error)
            gradients[kind, image, axis, second[0], second[1]] -= np.sign(error)
    return sums, counts, gradients


def irnet_loss(boundary, displacement, label_map, radius, borders):
    """Loss of a batch as published, from (B, 1, h, w), (B, 2, h, w) or None, and (B, h, w)."""
    kinds = np.stack([pair_kinds(labels, radius, borders) for labels in label_map])
    affinity = 1 - path_maxima(boundary, radius, borders)
    loss = affinity_loss(affinity, torch.from_numpy(kinds))
    if displacement is None:
        return loss
    sums, counts, _ = pair_errors(displacement, kinds, radius)
    return loss + float((sums / (counts + 1e-5)).sum()) / 2
