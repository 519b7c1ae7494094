"""Coverage against precision, against loops over pixels."""

import json

import numpy as np
import pytest

from wsss.errors import ArtifactError, ConfigError, DataError
from wsss.runtime.io.image_io import encode_grey, write_label_map
from wsss.runtime.report.pictures import encode_png
from wsss.training.data.image_set import ImageSet, MaskFile, Sample
from wsss.training.evaluation.coverage import STEPS, count_by_confidence, curve, measure_coverage
from wsss.training.evaluation.miou import ConfusionMatrix

SHAPE = (23, 31)


def drawn(seed, num_classes=2):
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, num_classes + 1, SHAPE).astype(np.uint8)
    confidence = generator.integers(0, 256, SHAPE).astype(np.uint8)
    guess = generator.integers(0, num_classes + 1, SHAPE).astype(np.uint8)
    label = np.where(generator.random(SHAPE) < confidence / 255, truth, guess).astype(np.uint8)
    truth[generator.random(SHAPE) < 0.1] = 255
    return label, confidence, truth


def naive_rows(images, num_classes):
    rows = []
    for step in range(STEPS):
        # 255 * step / STEPS in whole numbers
        pairs = [
            (guess, real)
            for label, confidence, truth in images
            for guess, sure, real in zip(label.flat, confidence.flat, truth.flat, strict=True)
            if real != 255 and int(sure) * STEPS >= 255 * step
        ]
        whole = sum(int((truth != 255).sum()) for _, _, truth in images)
        ious = []
        for value in range(num_classes + 1):
            hits = sum(guess == value == real for guess, real in pairs)
            union = sum(guess == value or real == value for guess, real in pairs)
            if any(real == value for _, real in pairs):
                ious.append(hits / union)
        objects = sum(guess > 0 for guess, _ in pairs)
        right = sum(guess == real for guess, real in pairs)
        rows.append(
            (
                step / STEPS,
                len(pairs) / whole,
                objects,
                right / len(pairs),
                np.mean(ious),
                len(ious),
            )
        )
    return rows


def test_the_curve_against_loops():
    images = [drawn(seed) for seed in range(2)]
    matrices = [ConfusionMatrix(2) for _ in range(STEPS)]
    for image in images:
        count_by_confidence(matrices, *image)
    rows, naive = curve(matrices), naive_rows(images, 2)
    all_objects = naive[0][2]
    for row, expected in zip(rows, naive, strict=True):
        threshold, kept, objects, accuracy, miou, classes = expected
        assert (row.threshold, row.classes) == (threshold, classes)
        found = (row.kept, row.objects_kept, row.accuracy, row.miou)
        shares = (kept, objects / all_objects, accuracy, miou)
        assert found == pytest.approx([100 * share for share in shares])
    assert rows[0].kept == 100
    assert rows[-1].accuracy > rows[0].accuracy


def test_a_confidence_on_the_threshold_is_kept():
    matrices = [ConfusionMatrix(1) for _ in range(STEPS)]
    one = np.ones((1, 2), np.uint8)
    count_by_confidence(matrices, one, np.array([[51, 255]], np.uint8), one)  # 0.2 and 1
    rows = curve(matrices)
    assert [row.kept for row in rows] == [100.0] * 5 + [50.0] * 15


def test_where_nothing_is_kept_nothing_is_measured():
    matrices = [ConfusionMatrix(1) for _ in range(STEPS)]
    zero = np.zeros((1, 2), np.uint8)
    count_by_confidence(matrices, zero, zero, zero)
    last = curve(matrices)[-1]
    assert (last.kept, last.objects_kept, last.accuracy, last.miou) == (0, None, None, None)
    assert last.classes == 0


def _job(tmp_path, **settings):
    """A job of two images, and the set that they are from."""
    out = tmp_path / "out"
    samples = []
    for index in range(2):
        label, confidence, truth = drawn(index)
        name = f"deep/image{index}"
        write_label_map(out / "masks" / f"{name}.png", label)
        for path, data in (
            (out / "confidence" / f"{name}.png", encode_grey(confidence)),
            (tmp_path / f"{name}.png", encode_png(np.zeros((*SHAPE, 3), np.uint8))),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        write_label_map(tmp_path / f"{name}_mask.png", truth)
        mask = MaskFile(tmp_path / f"{name}_mask.png", 2)
        samples.append(Sample(name, tmp_path / f"{name}.png", (0,), ("val",), mask))
    described = {"formats": ["confidence", "png"], "min_confidence": None, **settings}
    job = {"format": 1, "settings": described, "sources_digest": "", "list": ""}
    (out / "job.json").write_text(json.dumps(job))
    return out, ImageSet(tmp_path, "drawn", ("a", "b"), tuple(samples))


def test_a_job(tmp_path):
    out, images = _job(tmp_path)
    report = measure_coverage(out, images, split="val")
    assert (report.list_name, report.images) == ("val", 2)
    expected = naive_rows([drawn(0), drawn(1)], 2)
    assert [row.kept for row in report.rows] == pytest.approx([100 * row[1] for row in expected])
    assert report.to_json()["rows"][3]["threshold"] == 0.15


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formats": ["png"]}, "was written in the formats png: label again"),
        ({"formats": ["confidence", "png", "tar"]}, "label again into another folder"),
        (
            {"min_confidence": 0.5},
            "was written with a minimum confidence of 0.5, below which labels",
        ),
    ],
)
def test_jobs_without_what_is_needed(tmp_path, settings, message):
    out, images = _job(tmp_path, **settings)
    with pytest.raises(ConfigError, match=message):
        measure_coverage(out, images)


def test_what_is_missing_or_does_not_fit(tmp_path):
    out, images = _job(tmp_path)
    with pytest.raises(ArtifactError, match="holds no job: coverage needs a folder"):
        measure_coverage(tmp_path, images)
    path = out / "confidence" / "deep" / "image1.png"
    path.write_bytes(encode_grey(np.zeros((4, 5), np.uint8)))
    with pytest.raises(DataError, match="image 'deep/image1': label, confidence and mask are"):
        measure_coverage(out, images)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"no confidence map '.*' for image 'deep/image1'"):
        measure_coverage(out, images)
