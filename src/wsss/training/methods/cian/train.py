"""Both rounds of CIAN: a segmenter learns seeds, labels the training images, and learns those."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from heapq import merge
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ....runtime.io.image_io import write_label_map
from ...data.image_set import Sample
from ...engine.loop import Batch, Objective
from ...engine.networks import NetworkSpec, open_network
from ...engine.run import Run
from ...evaluation.miou import FolderPredictions, evaluate
from ..shared.crops import inside_cells, inside_pixels, on_label_grid, stage_labels
from ..shared.fitting import fit_objective, trained_network
from ..shared.per_image import make_image_files
from ..shared.segmenter_network import segment_image
from ..shared.segmenter_stage import (
    measure_on_validation,
    segmentation_objective,
    segmenter_crops,
)
from .losses import CIAN_NAMES, cian_loss, cian_loss_sums, cian_terms
from .network import CianSegmenter
from .recipe import CianRecipe, CianRoundSection


def first_network(recipe: CianRecipe, num_classes: int) -> NetworkSpec:
    """The segmenter of the first round."""
    return _network(recipe, recipe.cian, num_classes)


def second_network(recipe: CianRecipe, num_classes: int) -> NetworkSpec:
    """The segmenter of the second round, which has the module of the first."""
    return _network(recipe, recipe.segmenter, num_classes)


def _network(recipe: CianRecipe, section: CianRoundSection, num_classes: int) -> NetworkSpec:
    stride = section.output_stride or recipe.backbone.output_stride
    arguments = {
        "num_classes": num_classes,
        "channels": recipe.cian.channels,
        "self_affinity": recipe.cian.self_affinity,
    }
    return NetworkSpec(CianSegmenter, recipe.backbone.name, stride, arguments)


def train_cian(run: Run, folder: Path, digest: str) -> None:
    """First round, on the seeds; writes `weights.safetensors`."""
    recipe = run.recipe_of(CianRecipe)
    section = recipe.cian

    def fit(network: CianSegmenter) -> None:
        objective = cian_objective(run, network, section, "seeds")
        fit_objective(run, folder, digest, objective, section.train)

    spec = first_network(recipe, len(run.train_set.classes))
    trained_network(CianSegmenter, run, folder, spec, section.train, fit, section.start)


def measure_cian(run: Run, folder: Path) -> dict[str, float]:
    """mIoU of the first round on the validation list, where it has masks."""
    return measure_on_validation(run, folder, run.recipe_of(CianRecipe).cian)


def make_cian_labels(run: Run, folder: Path, digest: str) -> None:
    """Write what the first round says of the training images as pseudo labels (`NAME.png`)."""
    recipe = run.recipe_of(CianRecipe)
    network, _ = open_network(CianSegmenter, run.weights("cian"), run.device)

    def make(sample: Sample, image: NDArray[np.uint8], path: Path) -> None:
        present = (sample.labels or ()) if recipe.labels.present_only else None
        label = segment_image(
            network, image, recipe.cian, recipe.cam.align, run.device, present=present
        )
        write_label_map(path, label)

    make_image_files(run, "labels", folder, ".png", make)


def measure_cian_labels(run: Run, folder: Path) -> dict[str, float]:
    """mIoU of the labels, where there are masks."""
    subset = run.figures_set
    if subset is None:
        return {}
    present_only = run.recipe_of(CianRecipe).labels.present_only
    predictions = FolderPredictions(folder, subset, image_labels_used=present_only)
    report = evaluate(predictions, subset, run.figures_split)
    return {"miou": report.miou, "images": report.images}


def train_cian_segmenter(run: Run, folder: Path, digest: str) -> None:
    """Second round, from the first and on its labels; writes `weights.safetensors`."""
    recipe = run.recipe_of(CianRecipe)
    section = recipe.segmenter

    def fit(network: CianSegmenter) -> None:
        objective = cian_objective(run, network, section, "labels")
        fit_objective(run, folder, digest, objective, section.train)

    spec = second_network(recipe, len(run.train_set.classes))
    start = run.weights("cian")
    trained_network(CianSegmenter, run, folder, spec, section.train, fit, start)


def cian_objective(
    run: Run, network: CianSegmenter, section: CianRoundSection, labels: str
) -> Objective:
    """Augmented crops in groups that share a class, against the label maps of a stage.

    Args:
        labels: the stage that made them.
    """
    align = run.recipe.cam.align
    samples = run.train_set.samples
    sample = segmenter_crops(run, section, stage_labels(run, labels))
    if not section.cross_affinity:
        return segmentation_objective(run, network, section, sample)

    def terms(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        branches = model(batch["image"], inside_pixels(batch), section.group_size)
        logits = torch.stack([on_label_grid(branch, batch, align) for branch in branches])
        inside = inside_cells(batch, section.label_stride, align)
        return cian_loss_sums(logits, batch["labels"], inside)

    def loss(sums: Tensor, counts: Tensor) -> Tensor:
        return cian_loss(sums, counts, section.balance, section.completion)

    def figures(sums: Tensor, counts: Tensor) -> Tensor:
        return cian_terms(sums, counts, section.balance)

    def order(generator: np.random.Generator) -> NDArray[np.int64]:
        steps = len(samples) // section.train.batch_size
        used = steps * section.train.batch_size // section.group_size
        classes = [chosen.labels or () for chosen in samples]
        return class_groups(classes, section.group_size, generator, used=used)

    return Objective(
        network,
        len(samples),
        sample,
        terms,
        loss,
        CIAN_NAMES,
        figures=figures,
        order=order,
        group_size=section.group_size,
    )


def class_groups(
    labels: Sequence[Sequence[int]],
    group_size: int,
    generator: np.random.Generator,
    *,
    used: int,
) -> NDArray[np.int64]:
    """Shuffle images into groups, any two members of which share a class.

    Images are shuffled. The first that is left opens a group and takes the next ones that share a
    class with each who is in it. Where nobody is left who does, stand-ins are drawn from images of
    other groups; where there are none, members are repeated, so that an image whose classes no
    other one has is its own partner.

    An epoch has room for less than all groups. Those that lack most members are left out, and their
    images are the first to be drawn as stand-ins; but a group of an image whose classes are too
    rare for a whole one has the chance of any other, as it would be left out in every epoch.

    Args:
        labels: classes of each image; one without any is its own partner.
        group_size: images of a group, >= 2.
        used: groups that the epoch has room for.

    Returns:
        (groups * group_size,) image indices, group after group: the groups used, shuffled, and
        behind them the others. Each image comes at least once, and more than once only where it
        stands in for a missing partner.

    Source: the released code of CIAN, where an image waits for the next that shares a class.
    Deviation: there the epoch ends where an image finds no partner.
    """
    shuffled = generator.permutation(len(labels))
    classes = [set(labels[index]) for index in shuffled]
    having: dict[int, list[int]] = {}
    for place, own in enumerate(classes):
        for label in own:
            having.setdefault(label, []).append(place)

    def worth(group: list[int]) -> int:
        sizes = (max((len(having[label]) for label in classes[p]), default=0) for p in group)
        return group_size if min(sizes) < group_size else len(group)

    formed = _formed(classes, having, group_size)
    groups = [formed[index] for index in generator.permutation(len(formed))]
    groups.sort(key=worth, reverse=True)
    unused = {place for group in groups[used:] for place in group}
    filled = [_filled(group, group_size, classes, having, unused, generator) for group in groups]
    order = shuffled[np.array(filled, np.int64).reshape(-1, group_size)]
    return np.concatenate([generator.permutation(order[:used]), order[used:]]).reshape(-1)


def _formed(
    classes: Sequence[set[int]], having: Mapping[int, Iterable[int]], group_size: int
) -> list[list[int]]:
    """Groups in the order of their first members, without stand-ins.

    Args:
        classes: of each image.
        having: the images of each class, in order.
    """
    waiting = {label: OrderedDict.fromkeys(images) for label, images in having.items()}
    taken = [False] * len(classes)
    groups = []
    for opener in range(len(classes)):
        group: list[int] = []
        member = None if taken[opener] else opener
        while member is not None:
            group.append(member)
            taken[member] = True
            for label in classes[member]:
                del waiting[label][member]
            fitting = (
                image
                for image in merge(*(waiting[label] for label in classes[opener]))
                if _fits(image, group, classes)
            )
            member = next(fitting, None) if len(group) < group_size else None
        if group:
            groups.append(group)
    return groups


def _filled(
    group: list[int],
    group_size: int,
    classes: Sequence[set[int]],
    having: Mapping[int, Iterable[int]],
    unused: set[int],
    generator: np.random.Generator,
) -> list[int]:
    """The group with stand-ins for the partners it lacks, as far as possible of those unused."""
    if len(group) == group_size:
        return group
    others = {image for label in classes[group[0]] for image in having[label]} - set(group)
    drawn = [int(image) for image in generator.permutation(sorted(others))]
    filled = list(group)
    for image in sorted(drawn, key=lambda image: image not in unused):
        if len(filled) < group_size and _fits(image, filled, classes):
            filled.append(image)
    return [filled[place % len(filled)] for place in range(group_size)]


def _fits(image: int, group: Sequence[int], classes: Sequence[set[int]]) -> bool:
    """Whether it shares a class with each of the group."""
    return all(not classes[image].isdisjoint(classes[member]) for member in group)
