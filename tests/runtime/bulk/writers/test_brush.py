"""Label Studio's run lengths against a reader written from its description, and its own code."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from label_formats import brush_values
from labelled_images import LABELS, Labels

from wsss.runtime.bulk.formats.labelstudio import brush_bytes
from wsss.runtime.bulk.formats.runs import regions

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
label_maps = shapes.flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255]))
)


def _runs_of(lengths: list[int]) -> Labels:
    """Background and class in turn along one row."""
    values = np.arange(len(lengths), dtype=np.uint8) % 2
    return np.repeat(values, lengths)[None]


# Times four channels: both sides of each size of a length, and of what one code can hold.
BORDERS = [1, 2, 3, 4, 5, 63, 64, 65, 16383, 16384, 16385, 32768, 40000]


@given(label_maps | st.sampled_from(list(LABELS.values())))
def test_round_trip(label: Labels) -> None:
    for region in regions(label):
        found = brush_values(brush_bytes(region)).reshape(*label.shape, 4)
        expected = (label == region.value) * np.uint8(255)
        np.testing.assert_array_equal(found, np.repeat(expected[..., None], 4, 2))


@pytest.mark.parametrize("length", BORDERS)
def test_long_runs(length: int) -> None:
    label = _runs_of([length, length, 7, length])
    (region,) = regions(label)
    found = brush_values(brush_bytes(region)).reshape(-1, 4)
    np.testing.assert_array_equal(found[:, 3], label.ravel() * 255)


@pytest.mark.parametrize("length", BORDERS)
def test_same_bytes_as_label_studio(length: int) -> None:
    brush = pytest.importorskip(
        "label_studio_sdk.converter.brush",
        reason="label-studio-sdk, in no extra of ours; passed with 2.1.2",
    )
    for label in (_runs_of([length, length, 7, length]), *LABELS.values()):
        for region in regions(label):
            values = np.repeat((label == region.value).ravel() * 255, 4)
            ours = brush_bytes(region)
            assert ours == brush.encode_rle(values)
            if label.size < 3000:
                np.testing.assert_array_equal(brush.decode_rle(ours), values)
