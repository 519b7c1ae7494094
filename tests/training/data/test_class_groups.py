"""Groups of images that share a class: complete, in order, and the same for the same draws."""

from collections import Counter

import cian_reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.training.data.class_groups import class_groups

IMAGES = st.lists(st.sets(st.integers(0, 4), max_size=3).map(sorted), min_size=1, max_size=40)
SIZES = st.integers(2, 5)
SEEDS = st.integers(0, 2**32 - 1)


def grouped(labels, group_size, seed):
    order = class_groups(labels, group_size, np.random.default_rng(seed))
    assert order.dtype == np.int64 and len(order) % group_size == 0
    return order.reshape(-1, group_size).tolist()


@settings(max_examples=200, deadline=None)
@given(IMAGES, SIZES, SEEDS)
def test_partners_share_a_class_with_all_of_their_group(labels, group_size, seed):
    for group in grouped(labels, group_size, seed):
        shared = set.intersection(*(set(labels[index]) for index in group))
        # Images without a class stand alone.
        assert shared or len(set(group)) == 1


@settings(max_examples=200, deadline=None)
@given(IMAGES, SIZES, SEEDS)
def test_every_image_comes_once_and_stand_ins_fill_what_lacks(labels, group_size, seed):
    found = grouped(labels, group_size, seed)
    shuffled = np.random.default_rng(seed).permutation(len(labels)).tolist()
    formed = cian_reference.groups(labels, shuffled, group_size)
    assert Counter(index for group in formed for index in group) == Counter(range(len(labels)))
    assert len(found) == len(formed)
    for expected in formed:
        made = next(group for group in found if group[: len(expected)] == expected)
        found.remove(made)
        shared = set.intersection(*(set(labels[index]) for index in expected))
        others = {i for i, own in enumerate(labels) if shared & set(own)} - set(expected)
        # Nobody is repeated as long as an image that has not been asked could stand in.
        repeated = group_size - len(set(made))
        best = max(
            (sum(c in own for i, own in enumerate(labels) if i in others) for c in shared),
            default=0,
        )
        assert repeated == max(0, group_size - len(expected) - best)


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
    """The last incomplete batch of an epoch is dropped: it must not be the same kind of image."""
    labels = [[0]] * 8 + [[1]]
    places = {grouped(labels, 2, seed).index([8, 8]) for seed in range(60)}
    assert places == set(range(5))


def test_a_long_list_takes_linear_time_in_pairs():
    """Every image looks at few others even where most are taken: counted, not timed."""
    looked = 0

    class Counting(list):
        def __getitem__(self, index):
            nonlocal looked
            looked += 1
            return super().__getitem__(index)

    labels = Counting([index % 20] for index in range(5000))
    class_groups(labels, 2, np.random.default_rng(0))
    assert looked < 10 * len(labels)
