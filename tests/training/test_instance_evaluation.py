"""AP of instances against loops and pycocotools, and what counts: void, second finds, scores."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_instances import CLASSES, SIZES, moved, scene
from numpy.typing import NDArray

from wsss.errors import DataError
from wsss.runtime.instances.instance_map import InstanceMap
from wsss.runtime.io.image_io import write_label_map
from wsss.training.data.image_set import ImageSet, InstanceTruth, Sample
from wsss.training.evaluation.average_precision import (
    InstanceMasks,
    average_precision,
    match,
    precision_and_recall,
    right_ones,
)
from wsss.training.evaluation.instances import RANGE, InstanceTally, evaluate_instances

IMAGES = 40


def truth_of(found: InstanceMap, void: NDArray[np.bool_] | None = None) -> InstanceTruth:
    """The map as truth; instances that void pixels hide are none."""
    void = np.zeros(found.ids.shape, bool) if void is None else void
    ids = np.where(void, 0, found.ids)
    shown = np.unique(ids[ids > 0])
    places = np.zeros(len(found) + 1, np.uint16)
    places[shown] = np.arange(1, len(shown) + 1)
    return InstanceTruth(places[ids], found.classes[shown.astype(int) - 1], void)


def scattered(count: int, seed: int = 0, *, with_void: bool = False) -> list:
    """Pairs of predictions and truth: moved copies, of which some are of another scene."""
    pairs = []
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        size = SIZES[number % 2]
        truth = scene(generator, size, most=9)
        found = moved(truth if number % 4 else scene(generator, size), generator)
        # Few different scores, so that many are equal.
        scores = (np.ceil(found.scores * 8) / 8).astype(np.float32)
        void = generator.random(size) < 0.2 if with_void else None
        pairs.append((replace(found, scores=scores), truth_of(truth, void)))
    return pairs


def overlapping(found: InstanceMap) -> InstanceMasks:
    """Each instance twice, the second time wider and less sure."""
    height, width = found.ids.shape
    wide = [np.flatnonzero(np.roll(found.ids, 2, 1) == r + 1) for r in range(len(found))]
    plain = InstanceMasks.of(found)
    return InstanceMasks(
        (height, width),
        np.concatenate([plain.pixels, *wide]),
        np.append(
            plain.owners, np.repeat(np.arange(len(wide)) + len(found), [len(w) for w in wide])
        ),
        np.tile(found.classes, 2),
        np.append(found.scores, found.scores / 2),
    )


def masks_by_loops(found: InstanceMasks) -> list[NDArray[np.bool_]]:
    masks = np.zeros((len(found.classes), found.size[0] * found.size[1]), bool)
    for pixel, owner in zip(found.pixels.tolist(), found.owners.tolist(), strict=True):
        masks[owner, pixel] = True
    return [mask.reshape(found.size) for mask in masks]


def naive_ap(pairs: list, index: int, threshold: float) -> float:
    """AP of a class as the module describes it, mask by mask."""
    rows, count = [], 0
    for number, (found, truth) in enumerate(pairs):
        found = InstanceMasks.of(found) if isinstance(found, InstanceMap) else found
        true_masks = {g: truth.ids == g + 1 for g in range(len(truth)) if truth.classes[g] == index}
        count += len(true_masks)
        for r, mask in enumerate(masks_by_loops(found)):
            mask = mask & ~truth.void
            if found.classes[r] != index or found.scores[r] < 1e-5 or not mask.any():
                continue
            ious = {g: (mask & t).sum() / (mask | t).sum() for g, t in true_masks.items()}
            best = max(ious, key=ious.get, default=None)
            is_near = best is not None and ious[best] >= threshold
            rows.append((-found.scores[r], (number, best) if is_near else None))
    if not count:
        return float("nan")
    rows.sort(key=lambda row: row[0])  # stable
    used, curve = set(), []
    for place, (_, key) in enumerate(rows, 1):
        if key is not None and key not in used:
            used.add(key)
        curve.append((len(used) / place, len(used) / count))
    area = last = 0.0
    for place, (_, recall) in enumerate(curve):
        area += (recall - last) * max(precision for precision, _ in curve[place:])
        last = recall
    return area


def tally_of(pairs: list, num_classes: int = len(CLASSES)) -> InstanceTally:
    tally = InstanceTally(num_classes)
    for found, truth in pairs:
        found = InstanceMasks.of(found) if isinstance(found, InstanceMap) else found
        tally.add(match(found, truth), truth.classes)
    return tally


@pytest.mark.parametrize("kind", ["plain", "void", "overlapping"])
def test_ap_against_loops(kind: str) -> None:
    pairs = scattered(12, with_void=kind == "void")
    if kind == "overlapping":
        pairs = [(overlapping(found), truth) for found, truth in pairs]
    rows = tally_of(pairs).by_class(CLASSES)
    for index, name in enumerate(CLASSES):
        expected = {t: 100 * naive_ap(pairs, index, t) for t in (0.7, *RANGE)}
        assert 5 < expected[0.5] < 95
        assert rows[name]["ap50"] == pytest.approx(expected[0.5], abs=1e-3)
        assert rows[name]["ap70"] == pytest.approx(expected[0.7], abs=1e-3)
        assert rows[name]["ap"] == pytest.approx(np.mean([expected[t] for t in RANGE]), abs=1e-3)
    whole = tally_of(pairs).figures(None)
    for key in ("ap50", "ap70", "ap"):
        assert whole[key] == pytest.approx(np.mean([r[key] for r in rows.values()]), abs=1e-3)


def coco_evaluation(pairs: list, thresholds: list[float]):
    """pycocotools on the same masks, without its limits of number and area."""
    mask_tools = pytest.importorskip("pycocotools.mask", reason="pycocotools, in the extra test")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def item(mask, category, image_id, number):
        code = mask_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
        area = int(mask.sum())
        return {
            "id": number, "image_id": image_id, "category_id": int(category) + 1,
            "segmentation": code, "area": area, "iscrowd": 0,
            "bbox": mask_tools.toBbox(code).tolist(),
        }  # fmt: skip

    truths, results = [], []
    for image_id, (found, truth) in enumerate(pairs, 1):
        for g, category in enumerate(truth.classes):
            truths.append(item(truth.ids == g + 1, category, image_id, len(truths) + 1))
        for r, mask in enumerate(masks_by_loops(found)):
            row = item(mask, found.classes[r], image_id, len(results) + 1)
            results.append({**row, "score": float(found.scores[r])})
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": i + 1, "height": 1, "width": 1} for i in range(len(pairs))],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": truths,
    }
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(results), "segm")
    evaluation.params.iouThrs = np.array(thresholds)
    evaluation.params.maxDets = [1000]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("kind", ["plain", "overlapping"])
def test_matches_and_curves_are_those_of_pycocotools(kind: str) -> None:
    pairs = [
        (overlapping(found) if kind == "overlapping" else InstanceMasks.of(found), truth)
        for found, truth in scattered(IMAGES)
    ]
    evaluation = coco_evaluation(pairs, list(RANGE))
    of_image = {
        (each["image_id"], each["category_id"]): each
        for each in evaluation.evalImgs
        if each is not None
    }
    matches = [match(found, truth) for found, truth in pairs]
    firsts = np.cumsum([0, *(len(truth) for _, truth in pairs)])
    for index in range(len(CLASSES)):
        columns = []
        for first, each in zip(firsts.tolist(), matches, strict=False):
            mine = each.classes == index
            truths = np.where(each.truths < 0, -1, each.truths + first)
            columns.append((each.scores[mine], each.ious[mine], truths[mine]))
        scores, ious, truths = (np.concatenate(column) for column in zip(*columns, strict=True))
        num_truths = sum(int((truth.classes == index).sum()) for _, truth in pairs)
        theirs = [of_image.get((number + 1, index + 1)) for number in range(len(pairs))]
        order = np.argsort(-scores, kind="stable")
        for place, threshold in enumerate(RANGE):
            right = right_ones(scores, ious, truths, threshold)
            # Which instance each prediction was right about, 0 where about none.
            ours = np.zeros(len(scores), int)
            ours[order] = np.where(right, truths[order] + 1, 0)
            found, start = [], 0
            for number, (column, each) in enumerate(zip(columns, theirs, strict=True)):
                mine = ours[start : start + len(column[0])]
                start += len(mine)
                if each is None:
                    assert not len(mine)
                    continue
                by_score = np.argsort(-column[0], kind="mergesort")
                np.testing.assert_array_equal(mine[by_score], each["dtMatches"][place])
                found.append(number)
            assert found and right.sum() < len(right)
            assert right.any() or threshold > 0.8

            precision, recall = precision_and_recall(right, num_truths)
            envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
            at = envelope[np.searchsorted(recall, evaluation.params.recThrs, "left")]
            np.testing.assert_allclose(
                at, evaluation.eval["precision"][place, :, index, 0, 0], atol=1e-9
            )
            # The envelope falls, so 101 samples lie a hundredth from its area at most.
            assert abs(average_precision(right, num_truths) - at.mean()) <= 0.01


def square(top: int, left: int, side: int = 4) -> NDArray[np.bool_]:
    mask = np.zeros((12, 12), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def maps(*rows: tuple[NDArray[np.bool_], int, float]) -> InstanceMap:
    ids = np.zeros((12, 12), np.uint16)
    for number, (mask, _, _) in enumerate(rows, 1):
        ids[mask] = number
    classes = np.array([row[1] for row in rows], np.int64)
    return InstanceMap(ids, classes, np.array([row[2] for row in rows], np.float32))


ONE = truth_of(maps((square(2, 2), 0, 1)))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (maps((square(2, 2), 0, 1)), 100),
        (maps((square(2, 2), 1, 1)), 0),  # another class
        (maps(), 0),
        (maps((square(3, 2), 0, 1)), 100),  # IoU 12 / 20
        (maps((square(4, 2), 0, 1)), 0),  # 8 / 24
        (maps((square(2, 2), 0, 0.9), (square(8, 8), 0, 0.1)), 100),  # wrong after all are found
        (maps((square(2, 2), 0, 0.1), (square(8, 8), 0, 0.9)), 50),  # and before
        (maps((square(2, 2), 0, 0.1), (square(8, 8), 0, 0.9e-5)), 100),  # too low to count
        (maps((square(2, 2), 0, 0.9e-5)), 0),
    ],
)
def test_one_instance(found: InstanceMap, expected: float) -> None:
    assert tally_of([(found, ONE)]).by_class(CLASSES)["cat"]["ap50"] == expected


def test_a_threshold_is_reached_where_it_is_equal() -> None:
    found = maps((square(2, 2) & ~square(2, 2, 2) & ~square(4, 4, 2), 0, 1))  # 8 of 16 pixels
    rows = tally_of([(found, ONE)]).by_class(CLASSES)["cat"]
    assert (rows["ap50"], rows["ap70"], rows["ap"]) == (100, 0, 10)


def test_the_second_about_an_instance_is_wrong() -> None:
    truth = truth_of(maps((square(0, 0, 8), 0, 1), (square(8, 8), 0, 1)))
    first = np.flatnonzero(square(0, 0, 8))
    last = np.flatnonzero(square(8, 8))
    found = InstanceMasks(
        (12, 12),
        np.concatenate([first, first, last]),
        np.repeat([0, 1, 2], [64, 64, 16]),
        np.zeros(3, np.int64),
        np.array([0.9, 0.8, 0.7], np.float32),
    )
    # Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: area 1/2 + 1/2 * 2/3.
    figures = tally_of([(found, truth)]).by_class(CLASSES)["cat"]
    assert figures["ap50"] == pytest.approx(100 * 5 / 6, abs=1e-3)
    assert (figures["instances"], figures["predicted"]) == (2, 3)


def test_void_pixels_count_on_neither_side() -> None:
    object_, border = square(4, 4), square(3, 3, 6) & ~square(4, 4)
    truth = truth_of(maps((object_, 0, 1)), void=border)
    plain = truth_of(maps((object_, 0, 1)))
    wide = maps((object_ | border, 0, 1))  # 36 pixels, 16 of them of the object
    assert tally_of([(wide, truth)]).by_class(CLASSES)["cat"]["ap"] == 100
    assert tally_of([(wide, plain)]).by_class(CLASSES)["cat"]["ap"] == 0
    hidden = maps((object_, 0, 0.5), (border, 0, 0.9))
    figures = tally_of([(hidden, truth)]).by_class(CLASSES)["cat"]
    assert (figures["ap"], figures["predicted"]) == (100, 1)  # void alone: neither right nor wrong
    assert tally_of([(hidden, plain)]).by_class(CLASSES)["cat"]["ap"] == 50


def test_classes_that_do_not_occur_are_left_out_of_the_mean() -> None:
    found = maps((square(2, 2), 0, 1), (square(8, 8), 1, 1))
    tally = tally_of([(found, ONE)])
    assert tally.figures(None)["ap50"] == 100
    assert np.isnan(tally.by_class(CLASSES)["dog"]["ap50"])
    assert tally.by_class(CLASSES)["dog"]["predicted"] == 1


def test_no_image_and_no_instance() -> None:
    tally = tally_of([(maps((square(2, 2), 0, 1)), truth_of(maps()))])
    assert np.isnan(tally.figures(None)["ap50"])
    assert tally.figures(None) | {"ap50": 0, "ap70": 0, "ap": 0} == {
        "images": 1, "instances": 0, "predicted": 1, "ap50": 0, "ap70": 0, "ap": 0,
    }  # fmt: skip


class Stored:
    def __init__(self, truth: InstanceTruth) -> None:
        self.truth = truth

    def load(self) -> InstanceTruth:
        return self.truth

    def fingerprint(self) -> str:
        return ""


class Given:
    description = "given"
    image_labels_used = True

    def __init__(self, found: dict[str, InstanceMap]) -> None:
        self.found = found

    def predict(self, sample: Sample) -> InstanceMap:
        return self.found[sample.name]


def set_of(folder: Path, pairs: list, sources: list[str | None]) -> ImageSet:
    samples = []
    for number, ((_, truth), source) in enumerate(zip(pairs, sources, strict=True)):
        path = folder / f"image{number}.png"
        write_label_map(path, np.zeros(truth.ids.shape, np.uint8))
        samples.append(
            Sample(f"image{number}", path, (0,), ("val",), source=source, instances=Stored(truth))
        )
    return ImageSet(folder, "test", CLASSES, tuple(samples))


def test_report_says_what_was_measured(tmp_path: Path) -> None:
    pairs = scattered(8)
    images = set_of(tmp_path, pairs, ["a", "b"] * 4)
    given = Given({f"image{n}": found for n, (found, _) in enumerate(pairs)})
    report = evaluate_instances(given, images, "val")
    assert (report.predictions, report.list_name, report.images) == ("given", "val", 8)
    assert report.instances == sum(len(truth) for _, truth in pairs)
    assert report.image_labels_used is True
    whole = tally_of(pairs)
    assert report.classes == whole.by_class(CLASSES)
    assert report.ap50 == whole.figures(None)["ap50"]
    for name, part in (("a", pairs[::2]), ("b", pairs[1::2])):
        assert report.sources[name] == tally_of(part).figures(None)
    absent = replace(report, classes={"cat": {"ap50": float("nan")}})
    assert json.loads(json.dumps(absent.to_json(), allow_nan=False))["classes"] == {
        "cat": {"ap50": None}
    }


def test_order_of_images_decides_nothing_but_ties(tmp_path: Path) -> None:
    pairs = [
        (replace(found, scores=(found.scores + 0.001 * n) / 2), truth)
        for n, (found, truth) in enumerate(scattered(10))
    ]
    assert tally_of(pairs).figures(None) == tally_of(pairs[::-1]).figures(None)


def test_misfits_are_data_errors(tmp_path: Path) -> None:
    small = InstanceMap(np.ones((3, 3), np.uint16), np.zeros(1, np.int64), np.ones(1, np.float32))
    images = set_of(tmp_path, [(small, ONE)], [None])
    with pytest.raises(DataError, match="image 'image0': predicted instances are 3 x 3, the true"):
        evaluate_instances(Given({"image0": small}), images, "val")
    (sample,) = images.samples
    bare = replace(sample, name="bare", instances=None, splits=("val", "all"))
    mixed = replace(images, samples=(replace(sample, splits=("val", "good")), bare))
    with pytest.raises(DataError, match=r"2 images, 1 of them without .*'bare': choose .* good$"):
        evaluate_instances(Given({}), mixed, "val")
    with pytest.raises(DataError, match="1 of them without instance masks, such as 'bare': add"):
        evaluate_instances(Given({}), replace(images, samples=(bare,)), "val")
