"""Figures of the authors: which stand beside a run, and where they are shown."""

import json
from pathlib import Path

import pytest
from command_line import picture, wsss
from tiny_run import CLASSES

from wsss.training.compare.compare import published_miou
from wsss.training.data.class_list import VOC_CLASSES
from wsss.training.data.readers import read_image_set
from wsss.training.methods import open_method
from wsss.training.recipe.recipe import dump_recipe
from wsss.training.recipes import load_recipe

RUNS = {
    "vgg16": ("affinitynet_vgg16_voc12", {"cam": (48.9, 1464), "segmenter": (58.4, 1449)}),
    "resnet38": ("affinitynet_resnet38_voc12", {"cam": (47.7, 1464), "segmenter": (61.7, 1449)}),
    "resnet50": ("affinitynet_resnet50_voc12", {"cam": (None, 1464), "segmenter": (None, 1449)}),
    "cian": ("cian_resnet101_voc12", {"cam": (None, 1464), "segmenter": (64.3, 1449)}),
    "cian_small": ("cian_mobilenetv2", {"cam": (None, 1464), "segmenter": (None, 1449)}),
    "part": ("affinitynet_vgg16_voc12", {"cam": (None, 400), "segmenter": (None, 133)}),
}
"""By folder: a recipe, and of each stage the figure beside it and the images it was measured on."""


@pytest.mark.parametrize(
    ("method", "backbone", "measured", "expected"),
    [
        ("affinitynet", "resnet38", "cam", 47.7),
        ("affinitynet", "resnet38", "walk", 61.0),
        ("affinitynet", "resnet38", "segmenter", 61.7),
        ("affinitynet", "vgg16", "cam", 48.9),
        ("affinitynet", "vgg16", "walk", 59.6),
        ("affinitynet", "vgg16", "segmenter", 58.4),
        ("affinitynet", "resnet50", "walk", None),
        ("affinitynet", "mobilenetv2", "cam", None),
        ("irnet", "resnet50", "walk", 66.5),
        ("irnet", "resnet50", "segmenter", 63.5),
        ("irnet", "mobilenetv2", "segmenter", None),
        ("cian", "resnet101", "segmenter", 64.3),
        ("cian", "resnet101", "cian", None),
        ("cian", "mobilenetv2", "segmenter", None),
        ("sec", "vgg16", "segmenter", 50.7),
        ("selfguided", "resnet50", "segmenter", None),
    ],
)
def test_published_figures_are_those_of_the_same_network(
    method: str, backbone: str, measured: str, expected: float | None
) -> None:
    count = 1449 if measured == "segmenter" else 1464
    found = published_miou(open_method(method), backbone, measured, VOC_CLASSES, count)
    assert (found.miou if found else None) == expected


def test_published_figures_stand_beside_those_on_voc_alone() -> None:
    assert published_miou(open_method("irnet"), "resnet50", "walk", VOC_CLASSES, 399) is None
    assert published_miou(open_method("irnet"), "resnet50", "walk", CLASSES, 1464) is None
    assert published_miou(open_method("irnet"), "resnet50", "segmenter", VOC_CLASSES, 1464) is None


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """Images with the classes of VOC and no masks, and records of runs that measured on VOC."""
    folder = tmp_path_factory.mktemp("voc")
    data = folder / "data"
    (data / "JPEGImages").mkdir(parents=True)
    lists = data / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name in ("train", "train_aug", "val"):
        picture().save(data / "JPEGImages" / f"{name}.png")
        (lists / f"{name}.txt").write_text(f"{name}\n")
    rows = "".join(f"{name}.png,cat\n" for name in ("train", "train_aug", "val"))
    (data / "labels.csv").write_text(f"file,labels\n{rows}")
    (data / "classes.txt").write_text("\n".join(VOC_CLASSES) + "\n")
    inputs = {"images": read_image_set(data).digest(masks=False)}
    runs = []
    for name, (recipe, stages) in RUNS.items():
        runs.append(folder / name)
        runs[-1].mkdir()
        (runs[-1] / "recipe.toml").write_text(dump_recipe(load_recipe(recipe)))
        (runs[-1] / "run.json").write_text(json.dumps({"classes": VOC_CLASSES}))
        for stage, (_, images) in stages.items():
            figures = {"miou": 50.0, "images": images}
            record = {"inputs": inputs, "figures": figures, "seconds": 1.0, "memory": {}}
            (runs[-1] / stage).mkdir()
            (runs[-1] / stage / "stage.json").write_text(json.dumps(record))
    return data, runs


def test_published_figures_on_the_screen_and_the_page(
    voc: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    data, runs = voc
    asked = ("compare", *runs, "--data", data, "--out", tmp_path, "--pictures", 0)
    expected = {
        (name, stage): figure
        for name, (_, stages) in RUNS.items()
        for stage, (figure, _) in stages.items()
    }
    rows = json.loads(wsss(*asked, "--json").succeeded().out)["rows"]
    assert {(row["recipe"], row["stage"]): row["published"] for row in rows} == expected
    assert all((row["published"] is None) == (row["published_source"] is None) for row in rows)
    out = wsss(*asked).succeeded().out
    lines = [line.split() for line in out.splitlines()]
    for (name, stage), figure in expected.items():
        shown = [] if figure is None else [f"{figure:.1f}"]
        assert [name, stage, "50.0", *shown, "1", "s"] in lines
    assert "published: by the authors, on VOC 2012, of the same backbone" in out
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "cam, published on VOC 2012" in page and "segmenter, published on VOC 2012" in page
    assert "cam of vgg16 (affinitynet, vgg16): readme of the released code" in page
    assert "segmenter of cian (cian, resnet101): Fan and others, AAAI 2020" in page
    assert "of resnet50 (" not in page and "of cian_small (" not in page


def test_nothing_is_called_published_where_nothing_is(
    voc: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    data, runs = voc
    (part,) = (run for run in runs if run.name == "part")
    out = wsss("compare", part, "--data", data, "--out", tmp_path, "--pictures", 0).succeeded().out
    assert "published:" not in out
    assert "ublished" not in (tmp_path / "compare.html").read_text(encoding="utf-8")
