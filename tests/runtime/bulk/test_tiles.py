"""Huge images in tiles: as if whole away from seams, and at seams by a stated bound."""

from dataclasses import replace

import numpy as np
import pytest

from wsss.errors import ConfigError
from wsss.runtime.bulk.plan import Settings
from wsss.runtime.bulk.tiling import CELL, Cuts, TiledPredictor
from wsss.runtime.bundle.inputs import present_input
from wsss.runtime.predictor import AnyOf, Prediction, PredictorSpec

CLASSES = 3
SPEC = PredictorSpec(lambda threads: LocalModel(), ("a", "b", "c"), "walk", False, {})


class LocalModel:
    """Scores of a pixel depend on the pixels at most `reach` away; beyond the image it is dark.

    `grid`: pixels a side of a score; `offers_scores`: else labels alone, like a dense CRF.
    """

    def __init__(self, reach: int = 0, grid: int = 1, offers_scores: bool = True) -> None:
        self.reach, self.grid, self.offers_scores = reach, grid, offers_scores
        self.seen: list[tuple[tuple[int, ...], object]] = []

    def predict_equal(self, images, labels, mode="walk", crf=False):
        assert len({image.shape for image in images}) == 1
        self.seen += [(image.shape, given) for image, given in zip(images, labels, strict=True)]
        return [self._answer(image) for image in images]

    def scores(self, image):
        padded = np.pad(image.astype(np.float32), 2 * [(self.reach, self.reach)] + [(0, 0)])
        height, width = image.shape[:2]
        side = range(2 * self.reach + 1)
        mean = sum(padded[y : y + height, x : x + width] for y in side for x in side)
        raw = np.moveaxis(mean / (len(side) ** 2 * 255), 2, 0) ** 2
        scores = np.concatenate([np.full((1, height, width), 0.2, np.float32), raw])
        return scores / scores.sum(0)

    def _answer(self, image):
        scores = self.scores(image)
        label = scores.argmax(0).astype(np.uint8)
        if not self.offers_scores:
            return Prediction(label)
        share = scores.max(0) / scores.sum(0)
        return Prediction(label, share, scores[:, :: self.grid, :: self.grid], change=0.25)

    def close(self):
        self.seen.clear()


def picture(height, width, seed=0):
    """Smooth blobs, so that a pixel's class is that of its neighbourhood."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [
        np.sin(y / rng.uniform(5, 20) + rng.uniform(0, 6))
        + np.sin(x / rng.uniform(5, 20) + rng.uniform(0, 6))
        for _ in range(3)
    ]
    return np.stack([127 + 60 * wave for wave in waves], -1).astype(np.uint8)


def both(model, image, tile_pixels, labels=None):
    """(tiled, whole) answers."""
    tiled = TiledPredictor(model, SPEC, tile_pixels)
    (answer,) = tiled.predict([image], [labels])
    (whole,) = model.predict_equal([image], [labels])
    return answer, whole


def cores(height, width, side):
    """Where one tile alone decides."""
    inside = np.zeros((height, width), bool)
    rows, columns = Cuts.of(height, side), Cuts.of(width, side)
    for y in range(len(rows.starts)):
        for x in range(len(columns.starts)):
            inside[rows.core(y), columns.core(x)] = True
    return inside


SIZES = [(100, 130), (41, 300), (101, 33), (64, 65), (47, 1), (33, 2000), (1, 1100)]


@pytest.mark.parametrize(("length", "longest"), [(n, s) for n in range(1, 400, 7) for s in (8, 33)])
def test_every_pixel_is_covered_once_or_twice_and_weights_sum_to_one(length, longest):
    cuts = Cuts.of(length, longest)
    covered, weights = np.zeros(length, int), np.zeros(length, np.float32)
    for i in range(len(cuts.starts)):
        tile = cuts.tile(i)
        assert tile.stop - tile.start == cuts.size <= longest
        covered[tile] += 1
        weights[tile] += cuts.window(i)
        assert (cuts.window(i) >= 0).all()
    assert cuts.starts[0] == 0
    assert set(covered) <= {1, 2}
    assert (weights == 1).all()
    alone = [i for i in range(len(cuts.starts)) for i in range(*cuts.core(i).indices(length))]
    assert (covered[alone] == 1).all()


@pytest.mark.parametrize("size", SIZES)
def test_pixels_that_decide_for_themselves_are_labelled_as_in_the_whole(size):
    image, model = picture(*size), LocalModel()
    answer, whole = both(model, image, 1024)
    assert answer.label.dtype == np.uint8
    assert answer.confidence.dtype == np.float32
    assert answer.label.shape == answer.confidence.shape == size
    inside = cores(*size, 32)
    assert np.array_equal(answer.label[inside], whole.label[inside])
    assert np.array_equal(answer.confidence[inside], whole.confidence[inside])
    # In between the same two scores are summed by weights that sum to one, up to rounding.
    assert np.abs(answer.confidence - whole.confidence).max() < 1e-6
    ordered = np.sort(whole.scores, axis=0)
    is_clear = ordered[-1] - ordered[-2] > 1e-6
    assert np.array_equal(answer.label[is_clear], whole.label[is_clear])


@pytest.mark.parametrize("reach", [1, 2])
def test_what_a_tile_misses_beyond_its_edge_is_bounded_by_the_window(reach):
    """An error at `reach` pixels from an edge counts sin^2(pi / 2 * reach / overlap) at most."""
    size, side = (90, 140), 40
    image, model = picture(*size), LocalModel(reach)
    answer, whole = both(model, image, side * side)
    overlap = side // 4
    wrong_share = np.sin(np.pi / 2 * reach / overlap) ** 2
    # The blended score of a class lies between those of its tiles, all in [0, 1]; rows and columns.
    assert np.abs(answer.confidence - whole.confidence).max() <= 2 * wrong_share + 1e-6
    inside = cores(*size, side)
    assert np.array_equal(answer.confidence[inside], whole.confidence[inside])
    cut = TiledPredictor(model, SPEC, side * side)
    hard = np.concatenate(
        [
            model.predict_equal([image[:, :70]], [None])[0].confidence,
            model.predict_equal([image[:, 70:]], [None])[0].confidence,
        ],
        axis=1,
    )
    worst = np.abs(cut.predict([image], [None])[0].confidence - whole.confidence).max()
    assert worst < np.abs(hard - whole.confidence).max()  # than side by side without an overlap


def test_models_without_scores_meet_in_the_middle_of_the_overlap():
    size, side = (64, 70), 40
    image, model = picture(*size), LocalModel(offers_scores=False)
    answer, whole = both(model, image, side * side)
    assert answer.confidence is answer.scores is answer.change is None
    assert np.array_equal(answer.label, whole.label)


@pytest.mark.parametrize("size", [(64, 65), (50, 200)])
def test_scores_on_a_grid_are_stretched_where_tiles_overlap(size):
    """Constant in squares of 4 pixels: then the label of a square's centre does not hang on how."""
    image = picture(-(-size[0] // 8), -(-size[1] // 8)).repeat(8, 0).repeat(8, 1)
    image = np.ascontiguousarray(image[: size[0], : size[1]])
    answer, whole = both(LocalModel(grid=4), image, 1024)
    inside = cores(*size, 32)
    assert np.array_equal(answer.label[inside], whole.label[inside])
    assert (answer.label == whole.label).mean() > 0.8
    flat = np.full_like(image, 90)
    flat[..., 1] = 200
    answer, whole = both(LocalModel(grid=4), flat, 1024)
    assert np.array_equal(answer.label, whole.label)
    assert np.allclose(answer.confidence, whole.confidence, atol=1e-6)


@pytest.mark.parametrize("grid", [1, 4])
def test_scores_of_the_whole_are_means_of_squares(grid):
    image = picture(130, 200)
    answer, whole = both(LocalModel(grid=grid), image, 64 * 64)
    assert answer.scores.shape == (CLASSES + 1, 130 // CELL, 200 // CELL)
    assert answer.scores.dtype == np.float32
    assert np.allclose(answer.scores.sum(0), 1, atol=1e-5)
    if grid == 1:
        rows = np.minimum(np.arange(130) // CELL, 130 // CELL - 1)
        columns = np.minimum(np.arange(200) // CELL, 200 // CELL - 1)
        for i in range(130 // CELL):
            for j in range(200 // CELL):
                square = whole.scores[:, rows == i][:, :, columns == j]
                assert np.allclose(answer.scores[:, i, j], square.mean((1, 2)), atol=1e-5)
    assert answer.change == 0.25


def test_the_change_of_the_whole_counts_every_pixel_once():
    """Half of the first tile was changed and nothing else: it counts by what is its own of it."""

    class FirstTile(LocalModel):
        def _answer(self, image):
            is_first = len(self.seen) == 1
            return replace(super()._answer(image), change=0.5 if is_first else 0.0)

    height, width, side = 20, 100, 32
    cuts = Cuts.of(width, side)
    assert len(cuts.starts) > 2
    tiled = TiledPredictor(FirstTile(), SPEC, side * side)
    (answer,) = tiled.predict([picture(height, width)], [None])
    own = float(cuts.window(0).sum())
    assert cuts.core(0).stop < own < cuts.size
    assert answer.change == pytest.approx(0.5 * own / width, rel=1e-6)
    assert answer.change > 0.5 / len(cuts.starts)  # the first tile shares one side alone


def test_small_images_go_through_untouched():
    model = LocalModel()
    tiled = TiledPredictor(model, SPEC, 1024)
    images = [picture(32, 32), picture(32, 32, 1)]
    answers = tiled.predict(images, [(1,), None])
    assert model.seen == [((32, 32, 3), (1,)), ((32, 32, 3), None)]
    assert not any(isinstance(given, AnyOf) for _, given in model.seen)
    for answer, image in zip(answers, images, strict=True):
        assert np.array_equal(answer.scores, model.scores(image))
    tiled.close()
    assert not model.seen


def test_in_a_tile_the_classifier_decides_which_of_the_named_classes_are_there():
    model = LocalModel()
    TiledPredictor(model, SPEC, 1024).predict([picture(40, 40)] * 2, [(0, 2), None])
    assert len({shape for shape, _ in model.seen}) == 1
    named = [given for _, given in model.seen if given is not None]
    assert len(named) == len(model.seen) / 2
    assert all(isinstance(given, AnyOf) and given == (0, 2) for given in named)
    present = present_input([AnyOf((0, 2)), (0, 2), None, AnyOf()], CLASSES)
    assert present.tolist() == [[-1, 0, -1], [1, 0, 1], [-1, -1, -1], [0, 0, 0]]


def test_tiles_have_one_size_and_no_more_than_the_pixels_allowed():
    model = LocalModel()
    TiledPredictor(model, SPEC, 5000).predict([picture(501, 333)], [None])
    ((height, width, _),) = {shape for shape, _ in model.seen}
    assert height * width <= 5000


def test_settings_of_tiles():
    with pytest.raises(ConfigError, match="`tile_pixels` is 1000, expected at least 65536"):
        Settings(tile_pixels=1000)
    assert not Settings().takes_huge
    assert Settings(max_pixels=400_000_000).takes_huge
