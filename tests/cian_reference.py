"""CIAN's module and losses as loops over images, cells and pixels, in float64."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
IGNORE = 255


def project(weight: Array, x: Array) -> Array:
    """1x1 layer: (D, F) and (F, h, w) -> (D, h, w)."""
    rows, columns = x.shape[1:]
    result = np.zeros((len(weight), rows, columns))
    for row in range(rows):
        for column in range(columns):
            result[:, row, column] = weight @ x[:, row, column]
    return result


def pool(x: Array) -> Array:
    """The greatest of 3 x 3 cells around every second one; what lies outside does not count."""
    rows, columns = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    result = np.zeros((len(x), rows, columns))
    for row in range(rows):
        for column in range(columns):
            top, left = max(0, 2 * row - 1), max(0, 2 * column - 1)
            window = x[:, top : 2 * row + 2, left : 2 * column + 2]
            result[:, row, column] = window.max(axis=(1, 2))
    return result


def gather(query: Array, key: Array, value: Array) -> Array:
    """Each cell's mean of the values, weighted by the softmax of its products with the keys."""
    keys, values = key.reshape(len(key), -1), value.reshape(len(value), -1)
    result = np.zeros((len(value), *query.shape[1:]))
    for row in range(query.shape[1]):
        for column in range(query.shape[2]):
            products = np.array(
                [float(query[:, row, column] @ keys[:, cell]) for cell in range(keys.shape[1])]
            )
            weights = np.exp(products - products.max())
            weights /= weights.sum()
            for cell, weight in enumerate(weights):
                result[:, row, column] += weight * values[:, cell]
    return result


def normalise(images: Sequence[Array], scale: Array, shift: Array, eps: float) -> list[Array]:
    """Batch normalisation by the statistics of these images."""
    cells = np.concatenate([image.reshape(len(image), -1) for image in images], axis=1)
    mean, variance = cells.mean(axis=1), ((cells - cells.mean(axis=1)[:, None]) ** 2).mean(axis=1)
    factor = scale / np.sqrt(variance + eps)
    return [
        (image - mean[:, None, None]) * factor[:, None, None] + shift[:, None, None]
        for image in images
    ]


def branches(
    weights: Mapping[str, Array],
    images: Sequence[Array],
    group_size: int,
    eps: float,
    own: bool = True,
) -> tuple[list[Array], list[Array]]:
    """What the self and the cross branch add to the features of each image.

    Args:
        weights: `query`, `key`, `value` (D, F), `out` (F, D), `scale` and `shift` (F,).
        images: features (F, h, w); every `group_size` in a row are a group.
        own: whether the cross branch looks at the image itself too.
    """
    selves, crosses = [], []
    for index, image in enumerate(images):
        first = index - index % group_size
        query = project(weights["query"], image)
        seen = {}
        for other in range(first, first + group_size):
            key = pool(project(weights["key"], images[other]))
            value = pool(project(weights["value"], images[other]))
            seen[other] = gather(query, key, value)
        selves.append(seen[index])
        if not own:
            del seen[index]
        crosses.append(np.max(list(seen.values()), axis=0))
    scale, shift = weights["scale"], weights["shift"]
    return (
        normalise([project(weights["out"], one) for one in selves], scale, shift, eps),
        normalise([project(weights["out"], one) for one in crosses], scale, shift, eps),
    )


def mean_cross_entropy(logits: Array, labels: NDArray[np.int64]) -> float:
    """Over the labelled pixels of all images; 0 where there is none.

    Args:
        logits: (B, C + 1, h, w); labels: (B, h, w).
    """
    total, count = 0.0, 0
    for image, row, column in np.ndindex(*labels.shape):
        label = labels[image, row, column]
        if label != IGNORE:
            z = logits[image, :, row, column]
            total += np.log(np.exp(z - z.max()).sum()) + z.max() - z[label]
            count += 1
    return total / count if count else 0.0


def completion_labels(
    cross: Array, labels: NDArray[np.int64], inside: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The greatest plane of each pixel, where the labels of that image hold it too."""
    result = np.full(labels.shape, IGNORE, np.int64)
    for image, row, column in np.ndindex(*labels.shape):
        best = int(np.argmax(cross[image, :, row, column]))
        if inside[image, row, column] and best in labels[image]:
            result[image, row, column] = best
    return result


def loss(
    own: Array, cross: Array, labels: NDArray[np.int64], inside: NDArray[np.bool_]
) -> tuple[float, float, float, float]:
    """The four terms, each a mean over pixels."""
    completed = completion_labels(cross, labels, inside)
    return (
        mean_cross_entropy(own, labels),
        mean_cross_entropy(cross, labels),
        mean_cross_entropy(own, completed),
        mean_cross_entropy(cross, completed),
    )


def groups(
    labels: Sequence[Sequence[int]], order: Sequence[int], group_size: int
) -> list[list[int]]:
    """Groups as they form when each image waits for the next that shares a class with it.

    As in the released code: with each of those before it. Not filled.
    """
    left, result = list(order), []
    while left:
        group = [left.pop(0)]
        while len(group) < group_size:
            for index in left:
                if all(set(labels[index]) & set(labels[member]) for member in group):
                    break
            else:
                break
            left.remove(index)
            group.append(index)
        result.append(group)
    return result
