import instance_reference
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pytest import MonkeyPatch, approx, mark, raises

from wsss.errors import DataError
from wsss.runtime.instances import segments
from wsss.runtime.instances.segments import equal_segments, segments_of

PICTURE = np.array(
    [
        [1, 1, 0, 2, 2],
        [1, 2, 0, 2, 1],
        [0, 2, 2, 0, 1],
    ],
    np.int32,
)
SCORES = np.linspace(0.3, 1.0, 15, dtype=np.float32).reshape(3, 5)
CLASSES = np.array([7, 3], np.int64)


@given(
    height=st.integers(1, 15),
    width=st.integers(1, 15),
    num_labels=st.integers(1, 5),
    seed=st.integers(0, 2**31 - 1),
)
def test_segments_equal_a_flood_fill(height, width, num_labels, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_labels, (height, width)).astype(np.int32)
    found = equal_segments(labels)
    expected = instance_reference.components(labels)
    pairs = set(zip(found.ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(found)) == len(np.unique(expected))
    assert np.array_equal(found == 0, labels == 0)


@given(
    height=st.integers(2, 15),
    width=st.integers(1, 15),
    num_labels=st.integers(2, 4),
    rows=st.integers(1, 6),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_huge_image_has_the_same_segments_strip_by_strip(height, width, num_labels, rows, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_labels, (height, width)).astype(np.int32)
    scores = generator.random((height, width)).astype(np.float32)
    classes = np.arange(num_labels, dtype=np.int64)

    def told():
        return segments_of(labels, scores, classes, min_area=0.05, keep_fragments=True)

    expected, count = told(), equal_segments(labels).max()
    with MonkeyPatch.context() as patch:
        patch.setattr(segments, "_PIXELS_AT_ONCE", rows * width)
        found = told()
        assert equal_segments(labels).max() == count
    assert np.array_equal(found.ids, expected.ids)
    assert np.array_equal(found.classes, expected.classes)
    assert np.array_equal(found.scores, expected.scores)


def test_each_segment_is_an_instance_with_its_greatest_score():
    found = segments_of(PICTURE, SCORES, CLASSES, min_area=0.0, keep_fragments=True)
    assert found.ids.tolist() == [[1, 1, 0, 3, 3], [1, 4, 0, 3, 2], [0, 4, 4, 0, 2]]
    assert found.ids.dtype == np.uint16 and found.scores.dtype == np.float32
    assert found.classes.tolist() == [7, 7, 3, 3]
    assert found.scores.tolist() == [SCORES[1, 0], SCORES[2, 4], SCORES[1, 3], SCORES[2, 2]]


def test_fragments_have_no_score_or_no_place():
    kept = segments_of(PICTURE, SCORES, CLASSES, min_area=3 / 15, keep_fragments=True)
    assert kept.scores.tolist() == approx([0.55, 0, 0.7, 0.9])
    assert len(kept) == 4
    dropped = segments_of(PICTURE, SCORES, CLASSES, min_area=3 / 15, keep_fragments=False)
    assert dropped.ids.tolist() == [[1, 1, 0, 2, 2], [1, 3, 0, 2, 0], [0, 3, 3, 0, 0]]
    assert dropped.classes.tolist() == [7, 3, 3]
    assert dropped.scores.tolist() == kept.scores[[0, 2, 3]].tolist()


@mark.parametrize("keep", [True, False])
def test_no_winner_is_no_instance(keep):
    empty = np.zeros((4, 6), np.int32)
    for classes in (CLASSES, CLASSES[:0]):
        found = segments_of(
            empty, empty.astype(np.float32), classes, min_area=0.01, keep_fragments=keep
        )
        assert len(found) == 0 and not found.ids.any() and found.ids.shape == (4, 6)
        dtypes = (found.ids.dtype, found.classes.dtype, found.scores.dtype)
        assert dtypes == (np.uint16, np.int64, np.float32)


def test_more_segments_than_numbers_are_refused(monkeypatch):
    monkeypatch.setattr(segments, "_MOST", 3)
    with raises(DataError, match="4 segments, an instance map holds 3: leave out fragments"):
        segments_of(PICTURE, SCORES, CLASSES, min_area=0.0, keep_fragments=True)
    assert len(segments_of(PICTURE, SCORES, CLASSES, min_area=0.2, keep_fragments=False)) == 3
