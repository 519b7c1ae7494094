"""Images beyond what decoders take by themselves, in a job that asks for them."""

import os
from dataclasses import replace

import numpy as np
import pytest
from colour_model import ColourModel
from local_model import LocalModel
from PIL import Image

from wsss.errors import ConfigError
from wsss.runtime.bulk import run
from wsss.runtime.bulk.plan import Plan, Settings
from wsss.runtime.bulk.run import label_in_bulk
from wsss.runtime.bulk.work.pool import worker_environment
from wsss.runtime.io.image_io import PIXEL_LIMIT_VARIABLE

HUGE = Settings(max_pixels=200_000_000)


def test_a_process_that_cannot_decode_them_says_what_is_needed(tmp_path):
    image = tmp_path / "a.png"
    Image.new("L", (3, 2)).save(image)
    with pytest.raises(ConfigError) as caught:
        label_in_bulk([image], LocalModel(), tmp_path / "out", settings=HUGE, workers=0)
    assert str(caught.value) == (
        "`max_pixels` is 200000000, and this process decodes up to 178956970 pixels: give "
        "`workers` 1, or set OPENCV_IO_MAX_IMAGE_PIXELS=200000000 in its environment"
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="expected 1 to 536870912"):
        Settings(max_pixels=(1 << 29) + 1)


def test_workers_are_told_and_this_process_stays_as_it_was(tmp_path):
    image = tmp_path / "a.png"
    Image.new("RGB", (30, 20), (200, 0, 0)).save(image)
    before = dict(os.environ)
    summary = label_in_bulk([image], LocalModel(), tmp_path / "out", settings=HUGE, workers=1)
    assert summary.labelled == 1
    assert dict(os.environ) == before
    assert worker_environment(HUGE) == {PIXEL_LIMIT_VARIABLE: "200000000"}
    assert worker_environment(Settings()) == {}


def test_no_more_workers_than_huge_images_fit_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "free_cores", lambda: 8)
    monkeypatch.setattr(run, "_free_bytes", lambda: 40_000_000_000)

    def workers(model, settings):
        return run._num_workers(None, Plan(tmp_path, replace(model, workers=None), settings), 100)

    assert workers(LocalModel(), HUGE) == 8
    assert workers(ColourModel(), HUGE) == 2  # each 17 GB for instances of 200 megapixels
    assert workers(ColourModel(), Settings()) == 8


def test_tiles_are_part_of_what_a_job_is_where_an_image_may_be_cut(tmp_path):
    def identity(**settings):
        return Plan(tmp_path, LocalModel(), Settings(**settings)).identity()

    assert identity(tile_pixels=1 << 20) != identity()
    same = [identity(max_pixels=1 << 20, tile_pixels=pixels) for pixels in (1 << 20, 1 << 22)]
    assert same[0] == same[1]


@pytest.mark.slow
def test_a_huge_image_is_labelled_by_a_worker(tmp_path, monkeypatch):
    """180 megapixels of grey: some 2 GB of memory."""
    pixels = np.zeros((13_400, 13_450), np.uint8)
    pixels[5_000:, 7_000:] = 203
    image = tmp_path / "a.png"
    Image.fromarray(pixels).save(image, compress_level=1)
    refused = label_in_bulk([image], LocalModel(), tmp_path / "refused", workers=1)
    assert refused.failed == 1
    summary = label_in_bulk([image], LocalModel(), tmp_path / "out", settings=HUGE, workers=1)
    assert summary.labelled == 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with Image.open(tmp_path / "out" / "masks" / "a.png") as label:
        assert np.array_equal(label, pixels % 5)
