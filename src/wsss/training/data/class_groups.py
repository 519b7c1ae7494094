"""Groups of images that share a class, in the order of an epoch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def class_groups(
    labels: Sequence[Sequence[int]], group_size: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Shuffle images into groups whose members all have one class in common.

    Images are shuffled. The first that is left opens a group and takes the next ones that share a
    class with all who are in it. Where nobody is left who does, images that share one and stand in
    another group are drawn; where there are none, the members of the group are repeated, so that
    an image whose classes no other one has is its own partner. The groups are shuffled at the end.

    Args:
        labels: classes of each image; one without any is its own partner.
        group_size: images of a group, >= 2.

    Returns:
        (groups * group_size,) image indices, group after group; each image at least once, and more
        than once only where it stands in for a missing partner.

    Source: the released code of CIAN, where an image waits for the next that shares a class.
    Deviation: there images that are left over at the end of an epoch are not used.
    """
    shuffled = [int(index) for index in generator.permutation(len(labels))]
    of_class: dict[int, list[int]] = {}
    for index in shuffled:
        for label in labels[index]:
            of_class.setdefault(label, []).append(index)
    place = {index: position for position, index in enumerate(shuffled)}
    first = dict.fromkeys(of_class, 0)
    """Position in each list before which all are taken."""
    taken = [False] * len(labels)
    groups = []
    for opener in shuffled:
        if taken[opener]:
            continue
        taken[opener] = True
        group, shared = [opener], set(labels[opener])
        while len(group) < group_size:
            left = [_next(of_class[label], first, label, taken) for label in sorted(shared)]
            waiting = [index for index in left if index is not None]
            if not waiting:
                break
            partner = min(waiting, key=place.__getitem__)
            taken[partner] = True
            group.append(partner)
            shared &= set(labels[partner])
        groups.append(_filled(group, group_size, shared, of_class, generator))
    order = np.array(groups, np.int64).reshape(-1, group_size)
    return generator.permutation(order).reshape(-1)


def _next(images: list[int], first: dict[int, int], label: int, taken: list[bool]) -> int | None:
    """The first image of a class that is not taken."""
    while first[label] < len(images) and taken[images[first[label]]]:
        first[label] += 1
    return images[first[label]] if first[label] < len(images) else None


def _filled(
    group: list[int],
    group_size: int,
    shared: set[int],
    of_class: dict[int, list[int]],
    generator: np.random.Generator,
) -> list[int]:
    """The group with stand-ins for the partners it lacks."""
    missing = group_size - len(group)
    if not missing:
        return group
    # All of one class, so that stand-ins share it with each other too.
    others: list[int] = []
    for label in sorted(shared):
        having = [index for index in of_class[label] if index not in group]
        others = max(others, having, key=len)
    drawn = generator.permutation(others)[:missing]
    filled = [*group, *(int(index) for index in drawn)]
    return [filled[position % len(filled)] for position in range(group_size)]
