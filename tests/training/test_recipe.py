"""Recipes: shipped ones parse, faults come all at once, the resolved form reads back."""

import runpy
from pathlib import Path

import pytest
import torch

from wsss.errors import ConfigError
from wsss.runtime.refine.dense_crf import CrfSettings
from wsss.training.engine.loop import build_optimizer
from wsss.training.methods import open_method
from wsss.training.methods.shared.cam_stage import cam_network
from wsss.training.recipe.recipe import dump_recipe
from wsss.training.recipes import load_recipe, shipped_recipes

ROOT = Path(__file__).parents[2]
NAMES = shipped_recipes()


def test_the_promised_recipes_are_shipped():
    assert {
        "affinitynet_resnet38_voc12",
        "affinitynet_vgg16_voc12",
        "affinitynet_resnet50_voc12",
        "affinitynet_mobilenetv2",
        "irnet_resnet50_voc12",
        "irnet_mobilenetv2",
        "sec_vgg16_voc12",
        "sec_mobilenetv2",
        "selfguided_resnet50_voc12",
        "selfguided_mobilenetv2",
        "cian_resnet101_voc12",
        "cian_mobilenetv2",
        "demo",
    } <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipe_reads_back_from_its_resolved_form(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe


@pytest.mark.parametrize("name", NAMES)
def test_a_run_labels_by_networks_that_its_recipe_trains(name):
    recipe = load_recipe(name)
    method = open_method(recipe.method)
    ways = method.modes
    needed = {stage for stages in ways.values() for stage in stages}
    assert needed <= set(method.networks(recipe, 3)) == set(recipe.trainings())
    walks = {"walk", "labels"} if recipe.method in ("affinitynet", "irnet") else set()
    assert set(ways) == {"cam", "segmenter", *walks}


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


def test_published_values_of_the_irnet_recipe():
    recipe = load_recipe("irnet_resnet50_voc12")
    cam, irnet = recipe.cam.train, recipe.irnet.train
    assert (cam.batch_size, cam.epochs, cam.augmentation.crop_size) == (16, 5, 512)
    assert (irnet.batch_size, irnet.epochs, irnet.augmentation.crop_size) == (32, 3, 512)
    assert (cam.augmentation.long_side, cam.augmentation.scale) == ((320, 640), None)
    assert (irnet.augmentation.long_side, irnet.augmentation.scale) == (None, (0.5, 1.5))
    assert recipe.cam.dropout == 0 and recipe.cam.warmup.epochs == 0
    for train in (cam, irnet):
        assert (train.optimizer, train.momentum, train.poly_power) == ("sgd", 0, 0.9)
        assert (train.learning_rate, train.new_layer_factor, train.weight_decay) == (0.1, 10, 1e-4)
        assert train.augmentation.flip and not any(train.augmentation.jitter)
    assert irnet.biases == "alike"
    section, seeds, walk = recipe.irnet, recipe.seeds, recipe.walk
    assert (section.radius, section.borders, section.canvas) == (10, "reference", 512)
    assert (section.start, section.displacement) == ("weights", True)
    assert (seeds.rule, seeds.foreground, seeds.background) == ("constant", 0.3, 0.05)
    assert (seeds.unary, seeds.certainty) == ("labels", 0.7)
    assert seeds.crf.settings() == CrfSettings(10, 3, 3, 50, 5, 10)
    assert (walk.beta, walk.steps, walk.radius, walk.borders) == (10, 256, 5, "full")
    assert (walk.background, walk.threshold, walk.crf.iterations) == ("constant", 0.25, 0)
    assert (recipe.instances.steps, recipe.instances.centroid_radius) == (300, 2.5)
    assert (recipe.instances.threshold, recipe.instances.min_area) == (0.25, 0.01)


def test_the_published_irnet_classifier_trains_layers_3_and_4_and_its_head():
    recipe = load_recipe("irnet_resnet50_voc12")
    with torch.device("meta"):
        network = cam_network(recipe, 20).build()
    network.backbone.mark_pretrained()
    network.backbone.freeze(recipe.cam.train.frozen)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in build_optimizer(network, recipe.cam.train).param_groups
        for parameter in group["params"]
    }
    rates = {"layer3": (0.1, 1e-4), "layer4": (0.1, 1e-4), "classifier": (1.0, 1e-4)}
    for name, parameter in network.named_parameters():
        part = name.removeprefix("backbone.").split(".")[0]
        assert found.get(id(parameter)) == rates.get(part), name


def test_defaults_of_irnet_are_its_published_ones():
    """What a recipe leaves out comes from IRNet's code, not from AffinityNet's."""
    published = load_recipe("irnet_resnet50_voc12")
    for name in ("seeds", "walk", "instances"):
        section = getattr(published, name)
        assert type(section)() == section
    given = published.irnet
    assert type(given)(train=given.train) == given
    train = type(given.train)(epochs=3, batch_size=32, learning_rate=0.1)
    assert train.model_copy(update={"augmentation": given.train.augmentation}) == given.train
    assert load_recipe("affinitynet_resnet38_voc12").affinity.train.biases == "doubled"


def test_published_values_of_the_sec_recipe():
    recipe = load_recipe("sec_vgg16_voc12")
    section, train = recipe.segmenter, recipe.segmenter.train
    assert (section.loss, section.head, section.label_stride) == ("sec", "largefov", 8)
    losses = section.sec
    assert (losses.seed, losses.expand, losses.constrain) == (1, 1, 1)
    assert (losses.object_decay, losses.background_decay) == (0.996, 0.999)
    found = losses.crf.settings()
    assert (found.iterations, found.gaussian_compat, found.bilateral_compat) == (10, 3, 10)
    assert (found.gaussian_sxy, found.bilateral_srgb) == (3 / 12, 13)
    assert found.bilateral_sxy == pytest.approx(80 / 12)
    default = type(losses)().crf
    assert default.model_copy(update={"bilateral_sxy": losses.crf.bilateral_sxy}) == losses.crf
    assert (train.batch_size, train.learning_rate, train.momentum) == (15, 1e-3, 0.9)
    assert 10582 // train.batch_size * train.epochs == pytest.approx(8000, rel=0.04)
    assert train.augmentation.long_side == (321, 321) and train.augmentation.crop_size == 321


def test_the_self_guided_recipe_is_the_design():
    recipe = load_recipe("selfguided_resnet50_voc12")
    assert (recipe.backbone.name, recipe.backbone.output_stride) == ("resnet50", 8)
    assert (recipe.segmenter.head, recipe.segmenter.start) == ("dilated", "classifier")
    assert recipe.cam.train.epochs == 5
    section = recipe.selfguided
    assert (section.radius, section.beta, section.steps) == (5, 8, 2**3)
    assert (section.guide_radius, section.guide_eps, section.affinity_weight) == (8, 1e-3, 0.1)
    assert section.affinity and section.guided and section.alternate
    assert (recipe.seeds.rule, recipe.seeds.foreground) == ("constant", 0.3)
    assert (recipe.seeds.background, recipe.seeds.crf.settings()) == (0.05, None)
    assert type(section)() == section
    assert type(recipe.seeds)(crf=recipe.seeds.crf) == recipe.seeds


@pytest.mark.parametrize("name", ["sec_mobilenetv2", "selfguided_mobilenetv2"])
def test_small_recipes_share_the_stages_that_can_be_reused(name):
    own, shared = load_recipe(name), load_recipe("affinitynet_mobilenetv2")
    assert own.cam == shared.cam and own.backbone == shared.backbone
    assert name != "sec_mobilenetv2" or own.seeds == shared.seeds


@pytest.mark.parametrize("name", [name for name in NAMES if "selfguided" in name])
def test_self_guided_recipes_say_that_they_follow_an_abstract(name):
    text = (ROOT / "src/wsss/recipes" / f"{name}.toml").read_text(encoding="utf-8")
    assert "design after the" in text.split("\n\n")[0] and "abstract" in text.split("\n\n")[0]


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


def test_what_irnet_does_not_have_is_refused():
    for override, message in (
        ("irnet.train.frozen=[]", r"irnet: `train\.frozen` is given, but the backbone is frozen"),
        ("walk.background=power", "walk: `background` and `scales` are fixed for IRNet"),
        ("walk.scales=[1.0, 0.5]", "walk: `background` and `scales` are fixed for IRNet"),
        ("irnet.start=weights", r"irnet\.start is 'weights', but the backbone starts from scratch"),
        ("irnet.biases=alike", r"irnet\.biases is no key"),
        ("affinity.radius=5", "affinity is no key of this recipe"),
        ("irnet.canvas=-1", r"irnet\.canvas is -1, must be greater than or equal to 0"),
        ("irnet.train.augmentation.crop_size=128", r"irnet\.train.* is 128, must be k \* 8 \+ 1"),
        ("method=irn", "method is 'irn', must be 'affinitynet' or 'irnet'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_recipe("demo_irnet", [override])
    faults = ["irnet.start=weights", "walk.background=power", "irnet.radius=1"]
    with pytest.raises(ConfigError) as caught:
        load_recipe("demo_irnet", faults)
    for fault in ("irnet.start is 'weights'", "walk: `background`", "irnet.radius is 1"):
        assert fault in str(caught.value)


def test_a_section_of_another_method_is_one_fault():
    with pytest.raises(ConfigError) as caught:
        load_recipe("demo_sec", ["cian.train.epochs=1"])
    assert str(caught.value) == "recipe 'demo_sec.toml': cian is no key of this recipe"


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/b", ""])
def test_names_that_are_no_name_of_a_folder_are_refused(name):
    with pytest.raises(ConfigError, match="name is "):
        load_recipe("demo", [f'name="{name}"'])


@pytest.mark.parametrize("name", ["a", "a..b", "a.", "-_.", "x" * 64])
def test_names_that_are_taken(name):
    assert load_recipe("demo", [f'name="{name}"']).name == name


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
