"""Recipes: shipped ones parse, faults come all at once, the resolved form reads back."""

import runpy
from pathlib import Path

import pytest

from wsss.errors import ConfigError
from wsss.training.recipe import dump_recipe, load_recipe, shipped_recipes

ROOT = Path(__file__).parents[2]
NAMES = shipped_recipes()


def test_the_promised_recipes_are_shipped():
    assert {
        "affinitynet_resnet38_voc12",
        "affinitynet_vgg16_voc12",
        "affinitynet_resnet50_voc12",
        "affinitynet_mobilenetv2",
        "demo",
    } <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipe_reads_back_from_its_resolved_form(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_voc12")])
def test_recipes_for_voc_open_with_figures_cost_and_command(name):
    text = (ROOT / "src/wsss/recipes" / f"{name}.toml").read_text(encoding="utf-8")
    head = text.split("\n\n")[0]
    for word in ("Expected", "Cost", f"wsss train {name}"):
        assert word in head


def test_published_values_of_the_resnet38_recipe():
    recipe = load_recipe("affinitynet_resnet38_voc12")
    assert (recipe.seeds.foreground, recipe.walk.alpha, recipe.seeds.background) == (4, 16, 32)
    assert (recipe.walk.beta, recipe.walk.steps, recipe.walk.radius) == (8, 256, 5)
    assert (recipe.cam.train.momentum, recipe.cam.train.new_layer_factor) == (0, 10)
    assert (recipe.cam.train.batch_size, recipe.cam.train.epochs) == (16, 15)
    assert (recipe.affinity.train.batch_size, recipe.affinity.train.epochs) == (8, 8)


def test_all_faults_are_reported_at_once(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        method = "affinitynet"
        name = "mine"
        colour = "red"
        [backbone]
        name = "resnet49"
        [cam.train]
        epochs = 0
        batch_size = 16
        learning_rate = 0.1
        [affinity.train]
        epochs = 1
        batch_size = 8
        [segmenter.train]
        epochs = 1
        batch_size = 8
        learning_rate = -1
        """
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for fault in (
        "colour is no key",
        "backbone.name is 'resnet49'",
        "cam.train.epochs is 0, must be greater than or equal to 1",
        "affinity.train.learning_rate is missing",
        "segmenter.train.learning_rate is -1",
    ):
        assert fault in message


def test_contradictions_between_values_are_faults():
    with pytest.raises(ConfigError, match="exclude each other"):
        load_recipe("demo", ["cam.train.augmentation.long_side=[256, 320]"])
    with pytest.raises(ConfigError, match="keeps layers of its ImageNet weights frozen"):
        load_recipe("demo", ["backbone.name=vgg16"])
    with pytest.raises(ConfigError, match="must satisfy background <= foreground"):
        load_recipe("demo", ["seeds.background=0.9"])
    with pytest.raises(ConfigError) as caught:
        sizes = [f"{stage}.train.augmentation.crop_size=128" for stage in ("cam", "segmenter")]
        load_recipe("demo", [*sizes, "walk.beta=-1"])
    assert str(caught.value).startswith("recipe 'demo.toml': walk.beta is -1")
    for stage in ("cam", "segmenter"):
        assert f"{stage}.train.augmentation.crop_size is 128, must be k * 8 + 1" in str(
            caught.value
        )


def test_overrides():
    recipe = load_recipe("demo", ["seed=3", "walk.beta = 10", "cam.align=reference"])
    assert (recipe.seed, recipe.walk.beta, recipe.cam.align) == (3, 10.0, "reference")
    with pytest.raises(ConfigError, match="must look like"):
        load_recipe("demo", ["seed"])
    with pytest.raises(ConfigError, match="is a value, not a section"):
        load_recipe("demo", ["name.more=1"])
    with pytest.raises(ConfigError, match=r"walk\.betas is no key"):
        load_recipe("demo", ["walk.betas=1"])


def test_no_such_recipe_names_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"no recipe 'voc': expected .* affinitynet_mobilenetv2"):
        load_recipe("voc")


def test_broken_toml_is_one_line(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[cam\n")
    with pytest.raises(ConfigError, match="is no valid TOML"):
        load_recipe(path)


def test_recipes_page_is_up_to_date():
    rendered = runpy.run_path(str(ROOT / "docs" / "build_recipes_page.py"))["render"]()
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8") == rendered
