"""The report of an IRNet run: its stages, and the sheet of what it learns."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from report_page import Page, read_page
from tiny_run import copy_run, tiny_recipe

from wsss.runtime.report.pictures import draw_dots
from wsss.training.data.image_set import ImageSet, InstanceTruth, Sample
from wsss.training.methods.irnet import report as irnet_report
from wsss.training.methods.irnet.method import METHOD
from wsss.training.methods.irnet.recipe import IRNetRecipe
from wsss.training.pipeline import train
from wsss.training.predict.run_report import write_run_report

HEADS = ("photo", "truth", "boundary", "displacement", "centroids", "instances")
NAMES = [f"train_{index}" for index in (0, 1, 3, 5, 6, 8)]
"""Six of the ten training images, evenly spread."""


class Truth:
    """As many instances as it is told to have, side by side in the mask."""

    def __init__(self, sample: Sample, count: int) -> None:
        self.sample, self.count = sample, count

    def load(self) -> InstanceTruth:
        mask = self.sample.load_mask()
        ids = np.zeros(mask.shape, np.uint16)
        for number in range(self.count):
            ids[number] = number + 1
        return InstanceTruth(ids, np.zeros(self.count, np.int64), np.zeros(mask.shape, bool))

    def fingerprint(self) -> str:
        return str(self.count)


def report_of(run: Path, images: ImageSet) -> Page:
    return read_page(write_run_report(run, images, device="cpu").read_text(encoding="utf-8"))


def test_the_report_shows_what_irnet_learnt(
    finished_irnet_run: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    run = copy_run(finished_irnet_run, tmp_path / "run")
    page = report_of(run, tiny_images)
    assert {stage.name for stage in METHOD.stages} <= set(page.texts)
    assert "affinity" not in page.texts
    assert set(HEADS) <= set(page.texts)
    assert page.texts.count("score 0 to 1") == 2  # of the stages' pictures and of IRNet's
    pictures = [image["alt"] for image in page.attributes("img")]
    for name in NAMES:
        assert pictures.count(name) == 5  # all but the truth: there are no instance masks
    # Six pictures of three images in the sheet of validation images, and the disc of directions.
    assert len(pictures) == 3 * 6 + 6 * 5 + 1
    assert "irnet: loss" in page.texts


def test_a_run_without_displacements_says_so(tiny_images: ImageSet, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = tiny_recipe("irnet.displacement=false", method="irnet")
    stages = ["cam", "seeds", "irnet", "labels", "instances"]
    train(recipe, tiny_images, out, device="cpu", stages=stages)
    page = report_of(out, tiny_images)
    assert page.texts.count("not learnt") == 3 * 6
    pictures = [image["alt"] for image in page.attributes("img")]
    assert [pictures.count(name) for name in NAMES] == [2] * 6


def test_instances_that_are_not_made_yet_are_missing(
    finished_irnet_run: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    run = copy_run(finished_irnet_run, tmp_path / "run", without=("instances", "segmenter"))
    page = report_of(run, tiny_images)
    # Instances: their card and six cells. Segmenter: its card, three cells, and its column.
    assert page.texts.count("not run") == (1 + 6) + (1 + 3 + 1)
    shutil.rmtree(run / "irnet")
    assert "displacement" not in report_of(run, tiny_images).texts


def test_images_with_several_objects_come_first(
    finished_irnet_run: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    run = copy_run(finished_irnet_run, tmp_path / "run")
    counts = {"train_2": 3, "train_7": 2}
    samples = tuple(
        replace(sample, instances=Truth(sample, counts.get(sample.name, 1)))
        for sample in tiny_images.samples
    )
    page = report_of(run, replace(tiny_images, samples=samples))
    pictures = [image["alt"] for image in page.attributes("img")]
    assert {name: pictures.count(name) for name in counts} == {"train_2": 6, "train_7": 6}
    assert not {f"train_{index}" for index in (0, 1, 3, 5)} & set(pictures)


def test_dots_lie_on_the_cells_where_ways_end() -> None:
    """All cells of a 5 x 9 grid point to cell (2, 6)."""
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(9.0), indexing="ij")
    field = torch.stack([2 - rows, 6 - columns])[None]
    photo = np.full((41, 81, 3), 90, np.uint8)
    radius = np.sqrt(irnet_report._DOT_AREA * 41 * 81 / np.pi)
    # Corner cells on corner pixels, or the middles of cells that share the picture.
    for align, centre in (("corners", (20, 60)), ("reference", (20, 58))):
        recipe = tiny_recipe(f"cam.align={align}", method="irnet")
        assert isinstance(recipe, IRNetRecipe)
        drawn = irnet_report._draw_centroids(photo, field, recipe)
        expected = draw_dots(photo, np.array([centre]), np.array([radius]))
        assert np.array_equal(drawn, expected)


def test_single_cells_get_no_dot() -> None:
    photo = np.full((41, 81, 3), 90, np.uint8)
    recipe = tiny_recipe(method="irnet")
    assert isinstance(recipe, IRNetRecipe)
    drawn = irnet_report._draw_centroids(photo, torch.zeros(1, 2, 41, 81), recipe)
    assert (drawn == 90).all()
