"""The outputs that are pictures or arrays of one image."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from labelled_images import LABELS, blobs, labelled, make_job, written
from PIL import Image

from wsss.runtime.bulk.formats.image_files import (
    ConfidenceWriter,
    OverlayWriter,
    PngWriter,
    ScoresWriter,
)
from wsss.runtime.io.image_io import decode_image, read_label_map
from wsss.runtime.io.palette import voc_palette
from wsss.runtime.report.pictures import draw_labels

OTHER_PALETTE = np.ascontiguousarray(voc_palette()[::-1])


def test_png_has_the_jobs_palette(tmp_path: Path) -> None:
    label = blobs()
    files = written(PngWriter(make_job(palette=OTHER_PALETTE)), [labelled(label)])
    assert list(files) == ["masks/a/b.png"]
    path = tmp_path / "a.png"
    path.write_bytes(files["masks/a/b.png"])
    np.testing.assert_array_equal(read_label_map(path), label)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image.convert("RGB")), OTHER_PALETTE[label])


def test_confidence_is_rounded() -> None:
    image = labelled(np.ones((1, 6), np.uint8))
    image.confidence[:] = [0, 0.001, 0.003, 0.5, 0.999, 1]
    (content,) = written(ConfidenceWriter(make_job()), [image]).values()
    grey = Image.open(io.BytesIO(content))
    assert grey.mode == "L"
    assert np.array(grey).tolist() == [[0, 0, 1, 128, 255, 255]]


@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
def test_confidence_of_any_size(label: np.ndarray) -> None:
    image = labelled(label)
    files = written(ConfidenceWriter(make_job()), [image])
    found = np.array(Image.open(io.BytesIO(files["confidence/a/b.png"])))
    assert found.shape == label.shape
    assert np.abs(found / 255 - image.confidence).max() <= 0.5 / 255 + 1e-6


def test_scores_load_without_pickle() -> None:
    image = labelled(blobs())
    files = written(ScoresWriter(make_job()), [image])
    with np.load(io.BytesIO(files["scores/a/b.npz"]), allow_pickle=False) as found:
        assert sorted(found) == ["classes", "scores", "wsss"]
        assert found["scores"].dtype == np.float16
        np.testing.assert_array_equal(found["scores"], image.scores.astype(np.float16))
        assert found["classes"].tolist() == ["cat", "dog"]


def test_scores_hold_no_date_and_take_no_room_for_absent_classes() -> None:
    job = make_job(f"class {index}" for index in range(80))
    absent = np.zeros((81, 60, 80), np.float32)
    image = replace(labelled(blobs()), scores=absent)
    (content,) = written(ScoresWriter(job), [image]).values()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert len(content) < absent.size / 50


def test_a_job_without_classes_has_scores_of_the_background() -> None:
    (content,) = written(ScoresWriter(make_job(())), [labelled(blobs())]).values()
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        assert found["classes"].tolist() == []


@pytest.mark.parametrize("palette", [voc_palette(), OTHER_PALETTE])
def test_overlay_is_the_drawing(palette: np.ndarray) -> None:
    image = labelled(np.repeat(np.repeat(blobs(20, 30), 8, 0), 8, 1))
    image.pixels[:] = 120
    job = make_job(palette=palette)
    files = written(OverlayWriter(job), [image])
    found = decode_image(files["overlays/a/b.jpg"], "a").astype(int)
    drawn = draw_labels(image.pixels, image.label, palette=palette)
    assert np.abs(found - drawn).mean() < 8  # JPEG blurs the white lines
    inside = (image.label == 1) & (drawn != 255).any(-1)
    assert np.abs(found[inside].mean(0) - drawn[inside].mean(0)).max() < 6


def test_an_overlays_comment_may_be_long() -> None:
    names = [f"class {index} {'x' * 1000}" for index in range(254)]
    job = make_job(names)
    (content,) = written(OverlayWriter(job), [labelled(np.zeros((9, 9), np.uint8))]).values()
    assert len(content) > 3 * 65_536
    assert decode_image(content, "a").shape == (9, 9, 3)
    assert content[:4] == b"\xff\xd8\xff\xe0" and content[6:10] == b"JFIF"
