"""The losses of SEC as float64 loops over images, classes and cells, from the paper's formulas."""

import math

import numpy as np

LEAST = 1e-4


def probabilities(logits):
    """(L, h, w) -> the same: softmax, raised by `LEAST`, summing to 1 at each cell."""
    logits = np.asarray(logits, np.float64)
    result = np.zeros_like(logits)
    for row, column in np.ndindex(logits.shape[1:]):
        powers = [math.exp(value) for value in logits[:, row, column]]
        raised = [value / sum(powers) + LEAST for value in powers]
        result[:, row, column] = [value / sum(raised) for value in raised]
    return result


def seed(logits, labels):
    """One image: mean of -log p over its seeds; None where it has none."""
    shares = probabilities(logits)
    values = [
        -math.log(shares[labels[place], *place])
        for place in np.ndindex(labels.shape)
        if labels[place] != 255
    ]
    return sum(values) / len(values) if values else None


def pooled(plane, inside, decay):
    """Global weighted rank pooling of the cells inside, the decay fitted to their number."""
    ranked = sorted((plane[place] for place in zip(*np.nonzero(inside), strict=True)), reverse=True)
    fitted = decay ** (1681 / len(ranked))
    weights = [fitted**rank for rank in range(len(ranked))]
    return sum(w * p for w, p in zip(weights, ranked, strict=True)) / sum(weights)


def expansion(logits, present, inside, object_decay, background_decay):
    """One image: terms of classes present, of background, of classes absent; None if undefined."""
    shares = probabilities(logits)
    if not inside.any():
        return None, None, None
    on = [-math.log(pooled(shares[k + 1], inside, object_decay)) for k in np.flatnonzero(present)]
    off = [-math.log(1 - shares[k + 1][inside].max()) for k in np.flatnonzero(~present)]
    background = -math.log(pooled(shares[0], inside, background_decay))
    return _mean(on), background, _mean(off)


def divergence(logits, crf):
    """One image: sum over cells of KL(crf || network), no probability of the CRF below `LEAST`.

    Ratios of the two end at 1 / 20 and at 20.
    """
    shares, total = probabilities(logits), 0.0
    for row, column in np.ndindex(shares.shape[1:]):
        kept = [max(float(value), LEAST) for value in crf[:, row, column]]
        target = [value / sum(kept) for value in kept]
        for q, p in zip(target, shares[:, row, column], strict=True):
            total += q * math.log(min(max(q / p, 0.05), 20.0))
    return total


def crf(logits, image, settings):
    """Mean field over all pairs of cells of one image, in loops; kernels as pydensecrf has them."""
    logits = np.asarray(logits, np.float64)
    planes, height, width = logits.shape
    cells = list(np.ndindex(height, width))
    kernels = []
    for weight, reach, colour in (
        (settings.gaussian_compat, settings.gaussian_sxy, None),
        (settings.bilateral_compat, settings.bilateral_sxy, settings.bilateral_srgb),
    ):
        kernel = np.zeros((len(cells), len(cells)))
        for (a, one), (b, other) in _pairs(cells):
            exponent = sum((p - q) ** 2 for p, q in zip(one, other, strict=True)) / reach**2
            if colour is not None:
                step = image[one].astype(float) - image[other].astype(float)
                exponent += float(step @ step) / colour**2
            kernel[a, b] = math.exp(-exponent / 2)
        scale = 1 / np.sqrt(kernel.sum(1) + 1e-20)
        kernels.append(weight * scale[:, None] * kernel * scale[None])
    preference = logits.reshape(planes, -1)
    shares = _softmax(preference)
    for _ in range(settings.iterations):
        shares = _softmax(preference + sum(shares @ kernel for kernel in kernels))
    return shares.reshape(logits.shape)


def _pairs(cells):
    return [(first, second) for first in enumerate(cells) for second in enumerate(cells)]


def _softmax(values):
    powers = np.exp(values - values.max(0))
    return powers / powers.sum(0)


def _mean(values):
    return sum(values) / len(values) if values else None
