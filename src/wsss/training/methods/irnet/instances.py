"""The stage of instances: CAMs parted by the displacement that IRNet found, then walked apart."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....runtime.bulk.formats.contract import plain_scores
from ....runtime.instances.files import CLASSES, OBJECTS, encode_ids
from ....runtime.instances.grouping import boundary_instances, cam_instances
from ....runtime.instances.instance_map import InstanceMap
from ....runtime.instances.maps import InstanceMaps, group_maps
from ....runtime.instances.settings import InstanceSettings
from ....runtime.io.files import atomic_write_bytes
from ....runtime.io.image_io import read_image, write_label_map
from ....runtime.io.score_maps import ScoreMaps, load_score_maps
from ...data.image_set import ImageSet, Sample
from ...engine.networks import open_network
from ...engine.run import Run
from ...evaluation.instance_predictions import PairPredictions
from ...evaluation.instances import evaluate_instances
from ..contract import InstanceSource
from ..shared.per_image import make_image_files
from .network import IRNet, image_boundary, image_maps, walk_settings
from .recipe import IRNetRecipe


def instance_settings(recipe: IRNetRecipe) -> InstanceSettings:
    """The recipe's instances as the runtime takes them."""
    return InstanceSettings(**recipe.instances.model_dump())


SOURCE = InstanceSource(
    is_learnt=lambda recipe: bool(recipe.irnet.displacement),
    settings=instance_settings,
    remedy="train a recipe of method irnet with irnet.displacement = true",
)


def make_instances(run: Run, folder: Path, digest: str) -> None:
    """Write VOC's pair of every training image: `SegmentationObject` and `SegmentationClass`.

    Nothing where displacements were not learnt.
    """
    recipe = run.recipe_of(IRNetRecipe)
    if not recipe.irnet.displacement:
        run.progress.note("instances: none, because irnet.displacement is false")
        return
    network, _ = open_network(IRNet, run.weights("irnet"), run.device)

    def make(sample: Sample, image: NDArray[np.uint8], path: Path) -> None:
        found = image_instances(network, image, _cams(run, sample), recipe, run.device)
        write_pair(folder, sample.name, found)

    make_image_files(run, "instances", folder / OBJECTS, ".png", make)


def measure_instances(run: Run, folder: Path) -> dict[str, float]:
    """AP in per cent of the instances, and of what they are made from, where there are masks.

    Connected parts of the CAMs alone (`cam_`), of CAMs that walked within boundaries (`boundary_`),
    and those of the stage, which displacements part as well.
    """
    recipe = run.recipe_of(IRNetRecipe)
    subset = _with_instances(run.figures_set)
    if subset is None or not recipe.irnet.displacement:
        return {}
    network, _ = open_network(IRNet, run.weights("irnet"), run.device)
    walk, settings = walk_settings(recipe), instance_settings(recipe)
    align = recipe.cam.align
    of_cams = replace(settings, threshold=recipe.cam.threshold)

    def from_cams(sample: Sample) -> InstanceMap:
        return cam_instances(_cams(run, sample), align, of_cams)

    def from_boundaries(sample: Sample) -> InstanceMap:
        image = read_image(sample.image_path)
        boundary = image_boundary(network, image, align=align, device=run.device)
        return boundary_instances(_cams(run, sample), boundary[0], walk, settings)

    stored = PairPredictions(folder, subset, image_labels_used=True)
    figures: dict[str, float] = {"images": len(subset.samples)}
    for prefix, predict in (
        ("cam_", from_cams),
        ("boundary_", from_boundaries),
        ("", stored.predict),
    ):
        report = evaluate_instances(
            _Made(predict), subset, run.figures_split, progress=run.progress
        )
        figures |= {f"{prefix}ap50": report.ap50, f"{prefix}ap70": report.ap70}
    return figures


def write_pair(folder: Path, name: str, found: InstanceMap) -> None:
    """Write the two files of an image; where its ids are, its classes are as well."""
    write_label_map(folder / CLASSES / f"{name}.png", found.label_map())
    nothing = np.zeros(found.ids.shape, bool)
    ids = encode_ids(found.ids, nothing, plain_scores(found.scores))
    atomic_write_bytes(folder / OBJECTS / f"{name}.png", ids)


def image_instances(
    network: IRNet,
    image: NDArray[np.uint8],
    maps: ScoreMaps,
    recipe: IRNetRecipe,
    device: torch.device,
) -> InstanceMap:
    """Instances of an image from its CAMs.

    Args:
        network: with its branch of displacements.
    """
    boundary, displacement = image_maps(network, image, align=recipe.cam.align, device=device)
    (found,) = group_maps([instance_maps(maps, boundary, displacement, recipe)])
    return found


def instance_maps(
    maps: ScoreMaps, boundary: Tensor, displacement: Tensor | None, recipe: IRNetRecipe
) -> InstanceMaps:
    """What the instances of an image are made from: its CAMs and what `image_maps` gave."""
    if displacement is None:
        raise ValueError("this IRNet has learnt no displacements")
    return InstanceMaps(
        maps, boundary[0], displacement[0], walk_settings(recipe), instance_settings(recipe)
    )


@dataclass(frozen=True)
class _Made:
    """See `InstancePredictions`."""

    predict: Callable[[Sample], InstanceMap]
    description: str = "instances of a run"
    image_labels_used: bool | None = True


def _cams(run: Run, sample: Sample) -> ScoreMaps:
    return load_score_maps(run.folder / "cam" / "scores" / f"{sample.name}.npz")


def _with_instances(images: ImageSet | None) -> ImageSet | None:
    samples = images.samples if images else ()
    usable = tuple(sample for sample in samples if sample.instances is not None)
    return replace(images, samples=usable) if images and usable else None
