"""Groups of images that share classes: whole, in order, and the same for the same draws."""

from collections import Counter

import cian_reference
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsss.training.methods.cian import train as module
from wsss.training.methods.cian.train import class_groups

IMAGES = st.lists(st.sets(st.integers(0, 4), max_size=3).map(sorted), min_size=1, max_size=40)
SIZES = st.integers(2, 5)
SEEDS = st.integers(0, 2**32 - 1)


def room(labels, group_size):
    """Groups of an epoch whose batches are one group each."""
    return len(labels) // group_size


def grouped(labels, group_size, seed):
    used = room(labels, group_size)
    order = class_groups(labels, group_size, np.random.default_rng(seed), used=used)
    assert order.dtype == np.int64 and len(order) % group_size == 0
    return order.reshape(-1, group_size).tolist()


def share(labels, one, other):
    return bool(set(labels[one]) & set(labels[other]))


def formed_groups(labels, group_size, seed):
    shuffled = np.random.default_rng(seed).permutation(len(labels)).tolist()
    return cian_reference.groups(labels, shuffled, group_size)


def is_rare(labels, index, group_size):
    """Whether no class of an image has images enough for a whole group."""
    counts = Counter(label for own in labels for label in own)
    return max((counts[label] for label in labels[index]), default=0) < group_size


@given(IMAGES, SIZES, SEEDS)
def test_any_two_of_a_group_share_a_class(labels, group_size, seed):
    for group in grouped(labels, group_size, seed):
        pairs = [(one, other) for one in group for other in group if one != other]
        assert all(share(labels, *pair) for pair in pairs)
        # Images without a class stand alone.
        assert all(labels[index] for index in group) or len(set(group)) == 1


def test_a_group_needs_no_class_that_all_have():
    """As in the released code, which asks for one in common with each of those before."""
    assert sorted(grouped([[0, 1], [1, 2], [0, 2]], 3, 0)[0]) == [0, 1, 2]


@given(IMAGES, SIZES, SEEDS)
def test_every_image_comes_once_and_stand_ins_fill_what_lacks(labels, group_size, seed):
    found = grouped(labels, group_size, seed)
    formed = formed_groups(labels, group_size, seed)
    assert Counter(index for group in formed for index in group) == Counter(range(len(labels)))
    assert len(found) == len(formed)
    for expected in formed:
        made = next(group for group in found if group[: len(expected)] == expected)
        found.remove(made)
        if len(set(made)) < group_size:
            # Nobody is repeated as long as an image that has not been asked could stand in.
            assert not any(
                all(share(labels, other, member) for member in made)
                for other in set(range(len(labels))) - set(made)
            )


@given(IMAGES, SIZES, SEEDS)
def test_groups_that_lack_most_are_left_out(labels, group_size, seed):
    found = grouped(labels, group_size, seed)
    used = room(labels, group_size)
    kept, left = [], []
    for group in formed_groups(labels, group_size, seed):
        place = next(i for i, made in enumerate(found) if made[: len(group)] == group)
        (kept if place < used else left).append(group)
    assert len(kept) == min(used, len(kept) + len(left))

    def worth(group):
        return group_size if any(is_rare(labels, i, group_size) for i in group) else len(group)

    assert max(map(worth, left), default=0) <= min(map(worth, kept), default=group_size)


def test_images_left_out_stand_in_first():
    """Where an image of a used group stands in, none that is lost would have fitted."""
    saved = 0
    for seed in range(40):
        generator = np.random.default_rng([1, seed])
        labels = [sorted(set(generator.integers(0, 8, 3).tolist())) for _ in range(70)]
        found, formed = grouped(labels, 8, seed), formed_groups(labels, 8, seed)
        groups = found[: room(labels, 8)]
        openers = {group[0] for group in groups}
        used = {i for members in formed if members[0] in openers for i in members}
        lost = set(range(len(labels))) - {index for group in groups for index in group}
        for group in groups:
            own = next(len(members) for members in formed if group[: len(members)] == members)
            stand_ins = group[own:]
            saved += sum(image not in used for image in stand_ins)
            first = next((i for i, image in enumerate(stand_ins) if image in used), None)
            if first is not None:
                for image in lost:
                    assert not all(share(labels, image, one) for one in group[: own + first])
    assert saved > 0


def test_an_epoch_of_pairs_loses_what_its_batches_leave_over():
    generator = np.random.default_rng(0)
    labels = [sorted(set(generator.integers(0, 20, 2).tolist())) for _ in range(399)]
    for seed in range(10):
        order = class_groups(labels, 2, np.random.default_rng(seed), used=392 // 2)
        assert 399 - len(set(order[:392].tolist())) in (7, 8)


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_the_same_draws_give_the_same_groups(group_size):
    generator = np.random.default_rng(0)
    labels = [sorted(set(generator.integers(0, 6, 2).tolist())) for _ in range(60)]
    orders = [grouped(labels, group_size, seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_an_image_whose_classes_no_other_has_is_its_own_partner():
    labels = [[0], [0], [1], []]
    for seed in range(50):
        assert sorted(sorted(group) for group in grouped(labels, 2, seed)) == [
            [0, 1],
            [2, 2],
            [3, 3],
        ]


def test_images_that_are_left_over_get_partners_that_were_drawn_already():
    stand_ins = set()
    for seed in range(50):
        groups = grouped([[0], [0], [0]], 2, seed)
        assert len(groups) == 2 and all(len(set(group)) == 2 for group in groups)
        counts = Counter(index for group in groups for index in group)
        stand_ins |= {index for index, count in counts.items() if count == 2}
    assert stand_ins == {0, 1, 2}


def test_groups_with_stand_ins_are_not_always_the_last():
    """What an epoch has no room for is dropped: it must not be the same kind of image."""
    labels = [[0]] * 8 + [[1]]
    places = {grouped(labels, 2, seed).index([8, 8]) for seed in range(60)}
    assert places == set(range(5))


def test_a_long_list_takes_linear_time_in_pairs(monkeypatch):
    """Every image is held against few others even where most are taken: counted, not timed."""
    compared = 0
    fits = module._fits

    def counting(image, group, classes):
        nonlocal compared
        compared += 1
        return fits(image, group, classes)

    monkeypatch.setattr(module, "_fits", counting)
    labels = [[index % 20, (index // 20 + 7) % 20] for index in range(5000)]
    class_groups(labels, 2, np.random.default_rng(0), used=2500)
    assert 2500 <= compared < 10 * len(labels)
