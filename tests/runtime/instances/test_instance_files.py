"""Instance maps: what they hold, what they refuse, and files of ids in and out."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, PngImagePlugin

from wsss.errors import DataError, ShapeError
from wsss.runtime.instances.files import encode_ids, read_ids
from wsss.runtime.instances.instance_map import MAX_INSTANCES, InstanceMap
from wsss.runtime.io.image_io import encode_grey

NOWHERE = np.zeros((2, 3), bool)
IDS = np.array([[1, 2, 0], [1, 0, 3]], np.uint16)


def instances(ids: np.ndarray, classes: list[int], scores: list[float] | None = None):
    scores = [1.0] * len(classes) if scores is None else scores
    return InstanceMap(ids, np.array(classes, np.int64), np.array(scores, np.float32))


def stored(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "ids.png"
    path.write_bytes(data)
    return path


def test_label_map_and_count() -> None:
    found = instances(IDS, [4, 0, 4], [0.5, 0.00001, 0.000009])
    assert found.label_map().tolist() == [[5, 1, 0], [5, 0, 5]]
    assert found.label_map().dtype == np.uint8
    assert (len(found), sum(found.counts().values())) == (3, 2)
    assert not instances(np.zeros((2, 2), np.uint16), []).label_map().any()


def test_pixels_can_be_taken_out() -> None:
    left = instances(IDS, [4, 0, 4]).without(IDS == 2)
    assert left.ids.tolist() == [[1, 0, 0], [1, 0, 3]] and left.ids.dtype == np.uint16
    assert len(left) == 3


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="up to 3, 2 classes"):
        instances(IDS, [0, 0])
    with pytest.raises(ShapeError, match=f"65535 instances, expected at most {MAX_INSTANCES}"):
        instances(IDS, [0] * (MAX_INSTANCES + 1))


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
        lambda size: st.tuples(
            arrays(np.uint16, size, elements=st.sampled_from([0, 1, 254, 255, 256, MAX_INSTANCES])),
            arrays(bool, size),
        )
    )
)
def test_ids_come_back(tmp_path_factory: pytest.TempPathFactory, both) -> None:
    ids, void = both
    ids[void] = 0
    data = encode_ids(ids, void, [0.25, 1])
    found = read_ids(stored(tmp_path_factory.mktemp("ids"), data))
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(found.void, void)
    assert found.scores is not None and found.scores.tolist() == [0.25, 1]
    assert data == encode_ids(ids, void, [0.25, 1])


def test_palette_shows_ids_in_colours_of_voc() -> None:
    image = Image.open(io.BytesIO(encode_ids(IDS, NOWHERE)))
    assert image.mode == "P" and image.convert("RGB").getpixel((0, 0)) == (128, 0, 0)


def test_grey_files_of_other_software(tmp_path: Path) -> None:
    found = read_ids(stored(tmp_path, encode_grey(IDS.astype(np.uint8))))
    np.testing.assert_array_equal(found.ids, IDS)
    assert found.scores is None
    wide = read_ids(stored(tmp_path, encode_grey(np.where(IDS == 3, np.uint16(255), IDS))))
    assert wide.ids[1, 2] == 255 and not wide.void.any()


@pytest.mark.parametrize(
    "text", ["[0.5", "{}", "[1.5]", "[-0.1]", "[NaN]", '["a"]', "[true]", "[[0.5]]", "[" * 9999]
)
def test_scores_that_are_none(text: str, tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("scores", text)
    Image.fromarray(IDS.astype(np.uint8)).save(tmp_path / "ids.png", pnginfo=chunks)
    with pytest.raises(DataError, match="have scores that are no list of numbers 0 to 1"):
        read_ids(tmp_path / "ids.png")


def test_files_that_are_none(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    with pytest.raises(DataError, match="not in the VOC palette"):
        read_ids(tmp_path / "colours.png")
    cut = encode_ids(IDS, NOWHERE)[:-20]
    with pytest.raises(DataError, match="truncated"):
        read_ids(stored(tmp_path, cut))
