"""Thresholds of the classifier against a search of all of them."""

import numpy as np
import pytest

from wsss.training.predict.calibration import FEWEST, choose_threshold, score_threshold


def naive_scores(threshold, probabilities, present):
    found = [float(p) >= threshold for p in probabilities]
    hits = sum(f and p for f, p in zip(found, present, strict=True))
    precision = hits / sum(found) if any(found) else 0.0
    recall = hits / sum(present) if any(present) else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return precision, recall, f1


@pytest.mark.parametrize("seed", range(20))
def test_against_all_thresholds(seed):
    generator = np.random.default_rng(seed)
    present = generator.random(40) < 0.4
    # Two decimals: many images share a probability.
    probabilities = np.round(generator.random(40) * 0.6 + 0.3 * present, 2).astype(np.float32)
    chosen = choose_threshold("c", probabilities, present)
    assert (chosen.note, chosen.images) == ("", present.sum())
    precision, recall, f1 = naive_scores(chosen.threshold, probabilities, present)
    assert (chosen.chosen.precision, chosen.chosen.recall) == pytest.approx((precision, recall))
    assert chosen.chosen.f1 == pytest.approx(f1)
    assert chosen.usual.f1 == pytest.approx(naive_scores(0.5, probabilities, present)[2])
    everywhere = {
        float(p): naive_scores(float(p), probabilities, present)[2] for p in probabilities
    }
    best = max(everywhere.values())
    assert f1 == pytest.approx(best)
    # The highest of the best: any more, and it is worse.
    reached = min(float(p) for p in probabilities if p >= chosen.threshold)
    assert reached == max(p for p, value in everywhere.items() if value > best - 1e-12)
    assert all(float(p) != chosen.threshold for p in probabilities)


def test_the_threshold_lies_in_the_gap():
    probabilities = np.array([0.1] * 5 + [0.3] * 5, np.float32)
    chosen = choose_threshold("c", probabilities, probabilities > 0.2)
    assert chosen.threshold == pytest.approx(0.2)
    assert (chosen.chosen.f1, chosen.usual.f1) == (1, 0)
    assert chosen.usual.precision == 0


def test_of_equal_f1_the_higher_is_taken():
    # From 0.875 on 4 of 4 found are hits, of 8 that there are; from 0.125 on 8 of 16.
    probabilities = np.array([0.875] * 4 + [0.125] * 12, np.float32)
    present = np.array([True] * 8 + [False] * 8)
    f1 = [score_threshold(threshold, probabilities, present).f1 for threshold in (0.875, 0.125)]
    assert f1 == pytest.approx([2 / 3, 2 / 3])
    assert choose_threshold("c", probabilities, present).threshold == 0.5


@pytest.mark.parametrize(
    ("num_with", "num_without", "note"),
    [
        (FEWEST - 1, 20, "kept: 4 images have it, fewer than 5"),
        (0, 20, "kept: 0 images have it, fewer than 5"),
        (20, FEWEST - 1, "kept: 4 images lack it, fewer than 5"),
        (FEWEST, FEWEST, ""),
    ],
)
def test_classes_with_few_images_keep_the_usual_threshold(num_with, num_without, note):
    present = np.array([True] * num_with + [False] * num_without)
    probabilities = np.where(present, 0.3, 0.2).astype(np.float32)
    chosen = choose_threshold("c", probabilities, present)
    assert chosen.note == note
    assert (chosen.threshold == 0.5) == bool(note)
