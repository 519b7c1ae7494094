"""Groups of images that share classes, in the order of an epoch."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from heapq import merge

import numpy as np
from numpy.typing import NDArray


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
