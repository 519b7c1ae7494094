"""Contact sheet of what IRNet learns: boundaries, displacements, and the instances they make."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ....runtime.instances.displacement import refine_centroids
from ....runtime.instances.instance_map import InstanceMap
from ....runtime.io.image_io import read_image
from ....runtime.io.palette import IGNORE_INDEX
from ....runtime.refine.geometry import to_full_size
from ....runtime.report.pictures import (
    Picture,
    direction_wheel,
    draw_directions,
    draw_dots,
    draw_heat,
    shrink,
)
from ...data.image_set import Sample
from ...engine.networks import open_network
from ...engine.run import Run
from ...evaluation.instance_predictions import PairPredictions
from ...report.page import (
    PICTURE_SIDE,
    Sheet,
    SheetRow,
    caption,
    class_legend,
    evenly,
    labels_picture,
)
from .network import IRNet, image_maps
from .recipe import IRNetRecipe

NUM_PICTURES = 6
NUM_CANDIDATES = 100
WHEEL_SIDE = 120
_DOT_AREA = 0.02
"""Share of the picture that the dot of all its cells together would cover."""
_LEAST_SHARE = 0.002
"""Of the cells; places where fewer end get no dot."""
_NOT_LEARNT = "not learnt"


def make_sheets(run: Run, finished: Collection[str]) -> list[Sheet]:
    """One sheet of training images where the run has a trained IRNet, else none."""
    recipe = run.recipe_of(IRNetRecipe)
    if "irnet" not in finished:
        return []
    network, _ = open_network(IRNet, run.weights("irnet"), run.device)
    samples = _samples(run)
    rows = []
    with run.progress.task("pictures of IRNet", len(samples)) as task:
        for sample in samples:
            rows.append(_row(run, recipe, network, sample, stored="instances" in finished))
            task.advance()
    return [
        Sheet(
            title="Boundaries, displacements, instances",
            text=f"{len(samples)} of the {len(run.train_set.samples)} images in list "
            f"'{recipe.data.train_split}', with several objects where truth tells. Each cell of "
            "the grid points to the middle of its object. Dots are where cells end that follow "
            "these vectors, the larger the more of them. Instances are told which classes are in "
            "the image.",
            columns=[
                ("photo", ""),
                ("truth", "objects"),
                ("boundary", "probability"),
                ("displacement", "way to the middle"),
                ("centroids", "where ways end"),
                ("instances", "CAMs walked apart"),
            ],
            rows=rows,
            legend=class_legend(run),
            has_scores=True,
            keys=[("way from the centre of the disc; dark is short", direction_wheel(WHEEL_SIDE))],
        )
    ]


def _samples(run: Run) -> Sequence[Sample]:
    """Images with several objects, where there is truth that tells; else any."""
    candidates = evenly(run.train_set.samples, NUM_CANDIDATES)
    several = [s for s in candidates if s.instances is not None and len(s.load_instances()) > 1]
    return evenly(several or candidates, NUM_PICTURES)


def _row(
    run: Run, recipe: IRNetRecipe, network: IRNet, sample: Sample, *, stored: bool
) -> SheetRow:
    """Pictures of one image; its instances where the stage has stored them."""
    image = read_image(sample.image_path)
    boundary, field = image_maps(network, image, align=recipe.cam.align, device=run.device)
    size = (image.shape[0], image.shape[1])
    probability = to_full_size(boundary[0], size, recipe.cam.align).cpu().numpy()
    small = shrink(image, PICTURE_SIDE)
    text = caption(run, sample)
    displacement: Picture | str = _NOT_LEARNT
    centroids: Picture | str = _NOT_LEARNT
    instances: Picture | str = _NOT_LEARNT
    if field is not None:
        vectors = to_full_size(field[0], size, recipe.cam.align).cpu().numpy()
        longest = float(np.hypot(*vectors).max())
        displacement = shrink(draw_directions(vectors, max(longest, 1e-6)), PICTURE_SIDE)
        centroids = _draw_centroids(small, field, recipe)
        text += f"; longest displacement {longest:.1f} cells"
        instances = "not run"
        if stored:
            predictions = PairPredictions(run.folder / "instances", run.train_set)
            instances = _instances_cell(image, predictions.predict(sample))
    cells = (
        small,
        _truth_cell(image, sample),
        draw_heat(small, probability),
        displacement,
        centroids,
        instances,
    )
    return SheetRow(sample.name, text, cells)


def _draw_centroids(small: Picture, field: Tensor, recipe: IRNetRecipe) -> Picture:
    """Dots where cells end, of an area that grows with their number."""
    ends = refine_centroids(field, steps=recipe.instances.steps)[0].flatten(1).cpu().numpy()
    places, counts = np.unique(ends, axis=1, return_counts=True)
    shares = counts / ends.shape[1]
    places, shares = places[:, shares >= _LEAST_SHARE], shares[shares >= _LEAST_SHARE]
    grid = np.array(field.shape[-2:])
    scale = np.array(small.shape[:2])
    if recipe.cam.align == "corners":
        centres = places.T * ((scale - 1) / np.maximum(grid - 1, 1))
    else:
        centres = (places.T + 0.5) * (scale / grid) - 0.5
    return draw_dots(small, centres, np.sqrt(shares * _DOT_AREA * scale.prod() / np.pi))


def _truth_cell(image: Picture, sample: Sample) -> Picture | str:
    if sample.instances is None:
        return "no masks"
    truth = sample.load_instances()
    scores = np.ones(len(truth), np.float32)
    return _instances_cell(image, InstanceMap(truth.ids, truth.classes, scores), truth.void)


def _instances_cell(
    image: Picture, found: InstanceMap, void: NDArray[np.bool_] | None = None
) -> Picture:
    labels = found.label_map()
    if void is not None:
        labels[void] = IGNORE_INDEX
    return labels_picture(image, labels, found.ids)
