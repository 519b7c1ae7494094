"""The demo of each method: what it prints, and what it leaves alone."""

from pathlib import Path

import pytest
from tiny_run import tiny_recipe

from wsss.errors import ArtifactError, ConfigError
from wsss.training.demo import run as demo
from wsss.training.demo.run import SCENES, DemoResult, run_demo
from wsss.training.engine.run import read_stage
from wsss.training.methods import METHODS, open_method
from wsss.training.methods.contract import DemoFigure
from wsss.training.recipe.recipe import Recipe
from wsss.training.recipes import load_recipe

KEYS = {"cam_miou", "walk_miou", "label_miou", "segmenter_miou", "data", "run", "report"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_demo_of_its_own_recipe(name: str) -> None:
    method = open_method(name)
    assert load_recipe(method.demo.recipe).method == name == method.name
    assert method.demo.scenes in SCENES
    stages = {stage.name for stage in method.stages}
    assert {figure.stage for figure in method.demo.figures} <= stages


def test_figures_stand_under_their_keys() -> None:
    figures = {DemoFigure("cam_miou", "CAM", "cam"): 1.0, DemoFigure("a", "b", "c"): (2.0, 3.0)}
    places = {"data": "a", "run": "b", "report": "c"}
    assert DemoResult(figures, **places).to_json() == {"cam_miou": 1.0, "a": (2.0, 3.0), **places}


def test_irnet_prints_the_figures_of_its_run_and_spares_other_demos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tiny(name: str, overrides: list[str]) -> Recipe:
        assert name == "demo_irnet"
        return tiny_recipe(*overrides, method="irnet")

    monkeypatch.setattr(demo, "TRAIN_IMAGES", 6)
    monkeypatch.setattr(demo, "VAL_IMAGES", 2)
    with monkeypatch.context() as patched:
        patched.setattr(demo, "load_recipe", tiny)
        printed = run_demo(tmp_path / "out", method="irnet", seed=3, device="cpu").to_json()
    instances = {"instance_ap50", "boundary_instance_ap50", "cam_instance_ap50"}
    assert printed.keys() == KEYS | instances
    run = tmp_path / "out" / "run"
    figures = {name: read_stage(run / name)["figures"] for name in ("cam", "labels", "instances")}
    assert printed["cam_miou"] == figures["cam"]["miou"]
    assert printed["walk_miou"] == figures["labels"]["walk_miou"]
    assert printed["instance_ap50"] == figures["instances"]["ap50"]
    assert printed["cam_instance_ap50"] == figures["instances"]["cam_ap50"]
    assert figures["instances"]["images"] == 6
    assert Path(printed["report"]).is_file()

    image = tmp_path / "out" / "data" / "JPEGImages" / "train_0000.png"
    drawn = image.read_bytes()
    with pytest.raises(ArtifactError, match="holds a demo of irnet: choose another `out`, or `o"):
        run_demo(tmp_path / "out", method="affinitynet", device="cpu")
    assert image.read_bytes() == drawn


@pytest.mark.parametrize(
    ("method", "own"),
    [("sec", {"seed_miou"}), ("selfguided", {"step_mious", "label_miou"})],
)
def test_methods_without_a_walk_print_what_they_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, own: set[str]
) -> None:
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 6)
    monkeypatch.setattr(demo, "VAL_IMAGES", 2)
    monkeypatch.setattr(demo, "load_recipe", lambda name, set_: tiny_recipe(*set_, method=method))
    printed = run_demo(tmp_path / "out", method=method, device="cpu").to_json()
    assert printed.keys() == (KEYS - {"walk_miou", "label_miou"}) | own
    figures = {
        stage.name: read_stage(Path(printed["run"]) / stage.name)
        for stage in open_method(method).stages
    }
    assert printed["segmenter_miou"] == figures["segmenter"]["figures"]["miou"]
    if method == "sec":
        assert printed["seed_miou"] == figures["seeds"]["figures"]["miou"]
    else:
        labels = figures["labels"]["figures"]
        assert printed["step_mious"] == tuple(labels[f"step{n}_best_miou"] for n in (1, 2, 3))
    page = Path(printed["report"]).read_text()
    assert ("Maps behind each step" in page) == (method == "selfguided")
    assert "from the walk" not in page


def test_cian_prints_its_rounds_and_no_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 6)
    monkeypatch.setattr(demo, "VAL_IMAGES", 2)
    monkeypatch.setattr(
        demo, "load_recipe", lambda name, overrides: tiny_recipe(*overrides, method="cian")
    )
    printed = run_demo(tmp_path / "out", method="cian", device="cpu").to_json()
    assert printed.keys() == (KEYS - {"walk_miou"}) | {"first_round_miou"}
    run = tmp_path / "out" / "run"
    for key, stage in (
        ("cam_miou", "cam"),
        ("first_round_miou", "cian"),
        ("label_miou", "labels"),
        ("segmenter_miou", "segmenter"),
    ):
        assert printed[key] == read_stage(run / stage)["figures"]["miou"]


def test_unknown_methods_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no demo of method 'psa': choose one of affinitynet, ir"):
        run_demo(tmp_path / "out", method="psa")
    assert not (tmp_path / "out").exists()
