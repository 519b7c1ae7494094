"""The walk inside of labelling: its share of the time by each form, and the labels they give.

    python benchmarks/walk_in_labelling.py RUN --data DIR --split train --count 40

RUN has finished its labels. For `count` images of the list: seconds an image of CAMs, features,
affinities, walk, CRF and writing, with each form of the walk; then how many pixels of all stored
labels of the run (made before) equal those of the form that `auto` takes now.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from wsss.bench.published_operators import dense_walk
from wsss.runtime.io.image_io import read_image, read_label_map, write_label_map
from wsss.runtime.io.score_maps import load_score_maps
from wsss.runtime.refine.feature_affinity import affinity_from_features
from wsss.runtime.refine.pairs import PairOffsets
from wsss.runtime.refine.pseudo_labels import label_from_scores, walk_scores
from wsss.runtime.refine.random_walk import propagate
from wsss.training.data.image_set import ImageSet, spread
from wsss.training.data.readers import read_image_set
from wsss.training.predict.run_predictor import RunPredictor

DENSE_IMAGES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = read_image_set(arguments.data).select(arguments.split)
    predictor = RunPredictor(arguments.run, "cpu")
    result = {
        "threads": arguments.threads,
        "seconds_per_image": shares(predictor, images, arguments.count),
        **agreement(arguments.run, predictor, images),
    }
    print(json.dumps(result, indent=1))


def shares(predictor: RunPredictor, images: ImageSet, count: int) -> dict[str, dict[str, float]]:
    """Seconds an image of every part, and per cent of the whole that the walk takes."""
    seconds: dict[str, float] = defaultdict(float)
    labelled = [sample for sample in images.samples if sample.labels]
    chosen = spread(labelled, count)
    warm = True
    for index, sample in enumerate([chosen[0], *chosen]):
        spent = partial(spend, defaultdict(float) if warm else seconds)
        warm = False
        measure_image(predictor, sample, spent, with_dense=0 < index <= DENSE_IMAGES)
    seconds["walk: dense"] *= len(chosen) / DENSE_IMAGES
    each = {name: value / len(chosen) for name, value in seconds.items()}
    others = sum(value for name, value in each.items() if not name.startswith("walk"))
    walks = {name: value for name, value in each.items() if name.startswith("walk")}
    return {
        "others": {n: round(v, 5) for n, v in each.items() if n not in walks},
        "walks": {n: round(v, 5) for n, v in walks.items()},
        "walk_per_cent": {n: round(100 * v / (v + others), 2) for n, v in walks.items()},
    }


def measure_image(predictor: RunPredictor, sample, spent: Callable, with_dense: bool) -> None:
    walk = predictor.recipe.walk
    image = spent("read", partial(read_image, sample.image_path))
    maps = spent("CAMs", partial(predictor.score_maps, image, sample.labels, "cam"))
    features = spent("features", partial(predictor.affinity_features, image))
    affinity = spent(
        "affinity",
        partial(
            affinity_from_features,
            features,
            radius=walk.radius,
            beta=walk.beta,
            borders=walk.borders,
        ),
    )
    grid = affinity.shape[-2:]
    scores = torch.nn.functional.interpolate(torch.from_numpy(maps.scores)[None], grid)
    settings = {"radius": walk.radius, "steps": walk.steps, "tolerance": walk.tolerance}
    for form in ("torch", "native"):
        spent(f"walk: {form}", partial(propagate, scores, affinity, form=form, **settings))
    if with_dense:
        pairs = PairOffsets(walk.radius)
        spent("walk: dense", partial(dense_walk, scores[0], affinity[0], pairs, walk.steps))
    labels = spent("label and CRF", partial(make_label, predictor, maps, image))
    with tempfile.TemporaryDirectory() as folder:
        spent("write", partial(write_label_map, Path(folder) / "label.png", labels))


def make_label(predictor: RunPredictor, maps, image) -> np.ndarray:
    recipe = predictor.recipe
    return label_from_scores(
        maps,
        threshold=recipe.walk.threshold,
        align=recipe.cam.align,
        image=image,
        crf=recipe.walk.crf.settings(),
    )


def spend(seconds: dict[str, float], name: str, work: Callable):
    started = time.perf_counter()
    result = work()
    seconds[name] += time.perf_counter() - started
    return result


def agreement(run: Path, predictor: RunPredictor, images: ImageSet) -> dict[str, float]:
    """Stored labels against labels made now from the stored CAMs."""
    same = total = 0
    for sample in images.samples:
        image = read_image(sample.image_path)
        maps = load_score_maps(run / "cam" / "scores" / f"{sample.name}.npz")
        affinity, damping = predictor.affinities(image)
        walked = walk_scores(
            maps, affinity, predictor.method.affinity.walk_settings(predictor.recipe), damping
        )
        stored_scores = walked.scores.astype(np.float16).astype(np.float32)  # as a run keeps them
        found = make_label(predictor, replace(walked, scores=stored_scores), image)
        stored = read_label_map(run / "labels" / f"{sample.name}.png")
        same += int((found == stored).sum())
        total += stored.size
    return {"images": len(images.samples), "equal_pixels": same / total}


if __name__ == "__main__":
    main()
