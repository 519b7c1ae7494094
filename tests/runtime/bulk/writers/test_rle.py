"""Runs, boxes and COCO's text against loops, our own reader, and pycocotools."""

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from labelled_images import LABELS, Labels

from wsss.runtime.bulk.formats.runs import coco_text, regions
from wsss.training.data.coco_masks import decode_runs

shapes = st.tuples(st.integers(1, 17), st.integers(1, 17))
label_maps = shapes.flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 254, 255]))
)
any_labels = label_maps | st.sampled_from(list(LABELS.values()))


@given(any_labels)
def test_regions_hold_each_class_once(label: Labels) -> None:
    found = np.zeros(label.size, np.uint8)
    values = []
    for region in regions(label):
        values.append(region.value)
        assert region.shape == label.shape
        for start, length in zip(region.starts.tolist(), region.lengths.tolist(), strict=True):
            assert length > 0 and (found[start : start + length] == 0).all()
            found[start : start + length] = region.value
    assert values == sorted(set(values))
    np.testing.assert_array_equal(found.reshape(label.shape), np.where(label == 255, 0, label))


@given(any_labels)
def test_area_box_and_counts(label: Labels) -> None:
    for region in regions(label):
        inside = label == region.value
        rows, columns = np.nonzero(inside)
        top, left, height, width = region.box
        assert (top, left) == (rows.min(), columns.min())
        assert (top + height, left + width) == (rows.max() + 1, columns.max() + 1)
        assert region.area == inside.sum()
        turns = np.arange(region.counts.size) % 2
        np.testing.assert_array_equal(np.repeat(turns, region.counts), inside.ravel())
        assert (region.counts[1:] > 0).all()


@given(any_labels)
def test_text_is_that_of_pycocotools(label: Labels) -> None:
    for region in regions(label.T):
        inside = label == region.value
        expected = pycocotools.mask.encode(np.asfortranarray(inside.astype(np.uint8)))
        assert coco_text(region.counts) == expected["counts"].decode()
        left, top, width, height = region.box
        assert pycocotools.mask.toBbox(expected).tolist() == [left, top, width, height]


@given(any_labels)
def test_our_reader_of_coco_takes_the_text(label: Labels) -> None:
    height, width = label.shape
    for region in regions(label.T):
        code: dict[object, object] = {"counts": coco_text(region.counts), "size": [height, width]}
        found = decode_runs(code, height, width)
        np.testing.assert_array_equal(found, label == region.value)


# Beyond 2**29 pixels pycocotools overruns its own text; our images have at most 178,956,970.
@pytest.mark.parametrize("largest", [15, 16, 31, 32, 1000, 2**28])
@given(data=st.data())
def test_counts_of_any_size(largest: int, data: st.DataObject) -> None:
    """Differences of either sign, at the borders between one character and the next."""
    counts = data.draw(st.lists(st.integers(0, largest), min_size=1, max_size=12))
    text = coco_text(np.array(counts, np.int64))
    height, width = sum(counts), 1
    found = pycocotools.mask.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
    assert text == found["counts"].decode()
