"""The dense CRF against the published package, where it is installed."""

import os
from pathlib import Path

import torch
from crf_cases import (
    PUBLISHED,
    SIZES,
    drawn_photograph,
    random_image,
    random_unary,
    same_labels,
    smooth_scores,
)
from pytest import importorskip, mark, skip

from wsss.bench.published_operators import package_crf
from wsss.runtime.io.image_io import read_image
from wsss.runtime.refine.dense_crf import (
    CrfSettings,
    DenseCrf,
    unary_from_labels,
    unary_from_logits,
    unary_from_scores,
)


def published_crf(image, unary, settings):
    importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    return package_crf(image, unary, settings)


@mark.oracle
@mark.parametrize("labels", [1, 2, 3, 21])
@mark.parametrize("size", SIZES)
def test_small_images_equal_the_published_package(size, labels):
    # Sizes that are no multiple of four leave the padding of the package in its lattice.
    image, unary = random_image(*size), random_unary(labels, *size)
    expected = published_crf(image, unary, CrfSettings())
    refined = DenseCrf(image, CrfSettings()).refine(unary)
    torch.testing.assert_close(refined, expected, rtol=0, atol=1e-5)


@mark.oracle
@mark.parametrize("labels", [2, 4, 21])
@mark.parametrize("name", PUBLISHED)
def test_drawn_photograph_agrees_with_the_published_package(name, labels):
    image = drawn_photograph(141, 187)
    check_agreement(image, name, labels)


@mark.oracle
@mark.parametrize("labels", [3, 21])
@mark.parametrize("name", PUBLISHED)
def test_photographs_agree_with_the_published_package(name, labels):
    default = Path(__file__).parents[2].parent / "shared"
    folder = Path(os.environ.get("WSSS_SHARED", default)) / "data/voc_mini/VOC2012/JPEGImages"
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        skip(f"no photographs in {folder}: set WSSS_SHARED to the folder with data/voc_mini")
    image = read_image(paths[labels % len(paths)])
    check_agreement(image, name, labels)


def check_agreement(image, name, labels):
    settings = PUBLISHED[name]
    scores = smooth_scores(labels, *image.shape[:2])
    unary = unary_from_scores(scores)
    if name == "seeds from labels":
        unary = unary_from_labels(scores.argmax(0), labels, 0.7)
    elif name == "logits":
        unary = unary_from_logits(8 * scores)
    refined = DenseCrf(image, settings).refine(unary)
    expected = published_crf(image, unary, settings)
    assert same_labels(refined, expected) >= 0.9995
    # Labels that change show that the comparison is not one of unaries.
    assert same_labels(refined, -unary) < 0.9995
