"""Scenes on a grid whose instances are known: ideal displacement fields, boundaries and CAMs."""

import numpy as np
import torch

from wsss.runtime.io.score_maps import ScoreMaps
from wsss.runtime.refine.pseudo_labels import WalkSettings


def walk_settings(**changes):
    """The published walk, with a tolerance near float32 rounding."""
    published = {
        "beta": 10.0,
        "steps": 256,
        "radius": 5,
        "borders": "full",
        "tolerance": 1e-6,
        "background": "constant",
        "alpha": 16.0,
        "threshold": 0.25,
        "align": "reference",
        "maps_on_grid": True,
    }
    return WalkSettings(**(published | changes))


def ideal_displacement(objects):
    """(h, w) object numbers, 0 none -> (2, h, w) float32 towards each object's centre of mass."""
    field = np.zeros((2, *objects.shape), np.float32)
    cells = np.indices(objects.shape)
    for number in np.unique(objects[objects > 0]):
        inside = cells[:, objects == number]
        field[:, objects == number] = inside.mean(axis=1, keepdims=True) - inside
    return torch.from_numpy(field)


def outline(objects):
    """(h, w) object numbers -> (1, h, w) float32: 1 on object cells beside anything else."""
    framed = np.pad(objects, 1, mode="edge")
    beside = [framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]]
    edge = np.any([other != objects for other in beside], axis=0) & (objects > 0)
    return torch.from_numpy(edge.astype(np.float32))[None]


def score_maps(objects, class_of, stride=4, classes=None):
    """CAM of each class: 1 inside of its objects, (h, w) * stride pixels."""
    classes = sorted(set(class_of.values())) if classes is None else classes
    planes = [
        np.isin(objects, [number for number, index in class_of.items() if index == wanted])
        for wanted in classes
    ]
    size = (objects.shape[0] * stride, objects.shape[1] * stride)
    scores = np.array(planes, np.float32).reshape(len(classes), *objects.shape)
    return ScoreMaps(np.array(classes, np.int64), scores, size)
