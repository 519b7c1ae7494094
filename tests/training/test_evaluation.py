"""mIoU against loops, and a report that says what was measured."""

import json

import numpy as np
import pytest

from wsss.errors import ArtifactError, DataError
from wsss.runtime.io.image_io import write_label_map
from wsss.runtime.io.score_maps import ScoreMaps, save_score_maps
from wsss.training.data.image_set import ImageSet, Sample
from wsss.training.evaluation.miou import SWEEP, ConfusionMatrix, FolderPredictions, evaluate


class StoredMask:
    def __init__(self, labels):
        self.labels = labels

    def load(self):
        return self.labels

    def fingerprint(self):
        return ""


def naive_iou(pairs, num_classes):
    result = []
    for label in range(num_classes + 1):
        hits = union = occurs = 0
        for prediction, truth in pairs:
            for guess, real in zip(prediction.flat, truth.flat, strict=True):
                if real == 255:
                    continue
                guess = 0 if guess == 255 else guess
                hits += guess == label and real == label
                union += guess == label or real == label
                occurs += real == label
        result.append(hits / union if occurs else float("nan"))
    return result


def random_pairs(count=3):
    generator = np.random.default_rng(0)
    values = np.array([0, 1, 2, 255], np.uint8)
    return [
        (generator.choice(values, (6, 5)), generator.choice(values, (6, 5))) for _ in range(count)
    ]


def test_confusion_matrix_against_loops():
    pairs = random_pairs()
    matrix = ConfusionMatrix(3)
    for prediction, truth in pairs:
        matrix.add(prediction, truth)
    np.testing.assert_allclose(matrix.iou(), naive_iou(pairs, 3))
    assert matrix.miou() == pytest.approx(np.nanmean(naive_iou(pairs, 3)))
    assert np.isnan(matrix.iou()[3])


def test_misfits_are_data_errors():
    matrix = ConfusionMatrix(2)
    with pytest.raises(DataError, match="is 4 x 4, its mask 4 x 5"):
        matrix.add(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8))
    with pytest.raises(DataError, match="label 3 found, the class list ends at 2"):
        matrix.add(np.full((2, 2), 3, np.uint8), np.zeros((2, 2), np.uint8))


def small_set(tmp_path, truths, sources=None):
    sources = sources or [None] * len(truths)
    for index, truth in enumerate(truths):
        write_label_map(tmp_path / f"image{index}.png", np.zeros_like(truth))
    samples = tuple(
        Sample(
            name=f"image{index}",
            image_path=tmp_path / f"image{index}.png",
            labels=(0, 1),
            splits=("val",),
            mask=StoredMask(truth),
            source=source,
        )
        for index, (truth, source) in enumerate(zip(truths, sources, strict=True))
    )
    return ImageSet(tmp_path, "test", ("cat", "dog"), samples)


def test_label_folder_report_names_its_circumstances(tmp_path):
    pairs = random_pairs()
    images = small_set(tmp_path, [truth for _, truth in pairs], ["a", "b", "a"])
    for index, (prediction, _) in enumerate(pairs):
        write_label_map(tmp_path / f"labels/image{index}.png", prediction)
    report = evaluate(FolderPredictions(tmp_path / "labels", images, False), images, "val")
    expected = naive_iou(pairs, 2)
    assert report.miou == pytest.approx(100 * np.mean(expected), abs=1e-3)
    assert list(report.iou) == ["background", "cat", "dog"]
    assert (report.images, report.list_name) == (3, "val")
    assert report.image_labels_used is False
    assert report.background == "in the predictions"
    of_a = naive_iou([pairs[0], pairs[2]], 2)
    assert report.sources["a"] == {
        "images": 2,
        "miou": pytest.approx(100 * np.mean(of_a), abs=1e-3),
    }
    json.dumps(report.to_json(), allow_nan=False)


def test_sweep_finds_the_best_threshold(tmp_path):
    truth = np.zeros((8, 8), np.uint8)
    truth[2:6, 2:6] = 2
    scores = np.full((1, 8, 8), 0.4, np.float32)
    scores[0, 2:6, 2:6] = 0.7
    images = small_set(tmp_path, [truth])
    save_score_maps(tmp_path / "cams/image0.npz", ScoreMaps(np.array([1]), scores, (8, 8)))
    predictions = FolderPredictions(tmp_path / "cams", images, True)
    swept = evaluate(predictions, images, "val", sweep=True)
    assert swept.background == "threshold 0.4, best of a sweep on this list"
    assert swept.miou == 100
    assert [row["threshold"] for row in swept.sweep] == list(SWEEP)
    fixed = evaluate(predictions, images, "val", threshold=0.2)
    assert fixed.background == "threshold 0.2"
    row = next(row for row in swept.sweep if row["threshold"] == 0.2)
    assert fixed.miou == row["miou"] < 100


def test_void_masks_have_no_best_threshold(tmp_path):
    images = small_set(tmp_path, [np.full((4, 4), 255, np.uint8)])
    maps = ScoreMaps(np.array([1]), np.ones((1, 4, 4), np.float32), (4, 4))
    save_score_maps(tmp_path / "cams/image0.npz", maps)
    predictions = FolderPredictions(tmp_path / "cams", images, True)
    report = evaluate(predictions, images, "val", threshold=0.3, sweep=True)
    assert np.isnan(report.miou) and report.background.startswith("threshold 0.3")


def test_what_is_missing_is_named(tmp_path):
    truth = np.zeros((4, 4), np.uint8)
    images = small_set(tmp_path, [truth, truth])
    with pytest.raises(ArtifactError, match="no such folder"):
        FolderPredictions(tmp_path / "nothing", images)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"holds no NAME\.png or NAME\.npz"):
        FolderPredictions(tmp_path / "empty", images)
    write_label_map(tmp_path / "some/image0.png", truth)
    with pytest.raises(ArtifactError, match=r"no prediction .*image1"):
        evaluate(FolderPredictions(tmp_path / "some", images), images, "val")
    without = ImageSet(tmp_path, "test", ("cat",), (Sample("x", tmp_path / "x.png", (0,)),))
    with pytest.raises(DataError, match="1 of them without a mask"):
        evaluate(FolderPredictions(tmp_path / "some", images), without, "val")
