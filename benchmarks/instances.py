"""What instances cost: centroids, clusters, walk and label of drawn images, stage by stage.

    python benchmarks/instances.py --size 375 500 --classes 3 --objects 6

Drawn: round objects whose displacement falls short of their centres and wavers, CAMs and
boundaries without any relation to them. Prints one JSON object.
"""

import argparse
import json
from dataclasses import asdict

import cv2
import numpy as np
import torch

from wsss.bench.instances import InstanceCase, bench_instances
from wsss.bench.machine import measure_machine
from wsss.runtime.instances.settings import InstanceSettings
from wsss.runtime.refine.pseudo_labels import WalkSettings

STRIDE = 4
PUBLISHED_WALK = WalkSettings(10.0, 256, 5, "full", 1e-4, "constant", 16.0, 0.25, "reference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(375, 500))
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--objects", type=int, default=6)
    parser.add_argument("--noise", type=float, nargs="+", default=(0.0, 0.3, 1.0))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {"machine": asdict(measure_machine(torch.device("cpu"))), "rows": []}
    for noise in arguments.noise:
        case = drawn_case(tuple(arguments.size), arguments.classes, arguments.objects, noise)
        rows = bench_instances(case, PUBLISHED_WALK, InstanceSettings(), rounds=arguments.rounds)
        result["rows"] += [{"noise": noise, **asdict(row)} for row in rows]
    print(json.dumps(result, indent=1))


def drawn_case(
    size: tuple[int, int], num_classes: int, num_objects: int, noise: float, seed: int = 0
) -> InstanceCase:
    """An image with objects around random points.

    Args:
        noise: standard deviation of what is added to the displacement, in cells; smooth over
            about two cells, as maps that networks enlarge are.
    """
    generator = np.random.default_rng(seed)
    height, width = (-(-side // STRIDE) for side in size)
    centres = generator.uniform(0, 1, (num_objects, 2)) * (height, width)
    radii = generator.uniform(12, 30, num_objects)
    cells = np.indices((height, width))
    towards = centres[:, :, None, None] - cells
    distance = np.hypot(towards[:, 0], towards[:, 1])
    nearest = distance.argmin(0)
    field = 0.8 * np.take_along_axis(towards, nearest[None, None], 0)[0]
    field[:, distance.min(0) > radii[nearest]] = 0
    field = np.stack([smooth(plane, 1) + noise * normal(generator, plane, 2) for plane in field])
    cams = [np.maximum(normal(generator, distance[0], height / 10), 0) for _ in range(num_classes)]
    scores = np.stack([cam / cam.max() for cam in cams])
    boundary = np.exp(-((3 * normal(generator, distance[0], 2)) ** 2))[None]
    maps = (torch.from_numpy(values.astype(np.float32)) for values in (scores, boundary, field))
    return InstanceCase(size, *maps)


def normal(generator: np.random.Generator, like: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth noise of variance 1."""
    plane = smooth(generator.standard_normal(like.shape), sigma)
    return plane / plane.std()


def smooth(plane: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(plane.astype(np.float32), (0, 0), sigma)


if __name__ == "__main__":
    main()
