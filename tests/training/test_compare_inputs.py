"""What `wsss compare` refuses, before anything is trained, and what it calls its runs."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import copy_run, tiny_recipe

from wsss.errors import ArtifactError, ConfigError, DataError
from wsss.training.compare import compare as module
from wsss.training.compare.compare import Comparison, compare
from wsss.training.compare.inputs import read_entries, read_weights
from wsss.training.data.image_set import ImageSet
from wsss.training.recipe.recipe import dump_recipe


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of this is found before."""

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(module, "train", fail)


def recipe_file(folder: Path, name: str, *overrides: str, method: str = "affinitynet") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(dump_recipe(tiny_recipe(f"name={name}", *overrides, method=method)))
    return str(path)


def compare_into(
    out: Path,
    asked: Sequence[object],
    images: ImageSet,
    weights: Sequence[str] = (),
    overrides: Sequence[str] = (),
    reuse: Sequence[Path] = (),
) -> Comparison:
    return compare(
        [str(given) for given in asked],
        images,
        out,
        weights=read_weights(weights),
        overrides=overrides,
        reuse=reuse,
        device="cpu",
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a.pth"], {"": "a.pth"}),
        (["resnet50=a.pth", "b=c.pth"], {"resnet50": "a.pth", "": "b=c.pth"}),
    ],
)
def test_weights(given: list[str], expected: dict[str, str]) -> None:
    assert read_weights(given) == {key: Path(value) for key, value in expected.items()}


@pytest.mark.parametrize("given", [["a.pth", "b.pth"], ["vgg16=a", "vgg16=b"]])
def test_weights_given_twice(given: list[str]) -> None:
    with pytest.raises(ConfigError, match="is given twice: give one file for each backbone"):
        read_weights(given)


def test_a_recipe_takes_the_weights_of_its_backbone(tmp_path: Path) -> None:
    long = recipe_file(tmp_path, "long")
    entries = read_entries(
        ["affinitynet_mobilenetv2", "sec_vgg16_voc12", long],
        tmp_path,
        weights=read_weights(["vgg16=vgg.pth", "other.pth"]),
        overrides=(),
        reuse=(),
    )
    assert [entry.weights and entry.weights.name for entry in entries] == [
        "other.pth",
        "vgg.pth",
        None,
    ]


def test_what_is_asked_for_must_be_one_of_each(
    tiny_images: ImageSet, finished_run: Path, tmp_path: Path
) -> None:
    out, long = tmp_path / "out", recipe_file(tmp_path, "long")
    alike = recipe_file(tmp_path / "other", "long", "walk.steps=1")
    beside = Path(os.path.relpath(finished_run))
    for asked, what in (
        ([long, long], "'long' is asked for twice"),
        ([long, alike], "'long' is asked for twice: .* recipes that differ names of their own"),
        ([finished_run, beside], "'run' is asked for twice"),
        ([long, "affinitynet_mobilenetv2"], "starts from ImageNet weights of mobilenetv2"),
        ([long, "nothing"], "no recipe 'nothing' and no run: .* that `wsss train` wrote"),
        ([long, tmp_path], f"no recipe '{tmp_path}' and no run: expected"),
        ([long, tmp_path / "no.toml"], "no recipe .*no.toml': expected a path to a .toml file"),
    ):
        with pytest.raises(ConfigError, match=what):
            compare_into(out, asked, tiny_images)
    assert not out.exists()


def test_runs_of_one_name_are_told_apart_by_their_folders(
    finished_run: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / name / "run" for name in ("a", "b")]
    for folder in folders:
        copy_run(finished_run, folder)
    long = recipe_file(tmp_path, "run")
    entries = read_entries(
        [*map(str, folders), long], tmp_path / "out", weights={}, overrides=(), reuse=()
    )
    assert [entry.name for entry in entries] == ["a/run", "b/run", "run"]
    (one,) = read_entries([str(folders[0])], tmp_path, weights={}, overrides=(), reuse=())
    assert one.name == "run"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"overrides": ["walk.steps=2"]}, "`overrides` is for recipes"),
        ({"reuse": [Path("a")]}, "`reuse` is for recipes"),
        ({"weights": ["a.pth"]}, "`weights`: no recipe that is asked for starts from them"),
        ({"weights": ["vgg16=a.pth"]}, "`weights` of vgg16: no recipe"),
    ],
)
def test_options_that_runs_make_no_use_of(
    options: dict[str, Sequence[str]],
    what: str,
    tiny_images: ImageSet,
    finished_run: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=what):
        compare_into(tmp_path / "out", [finished_run], tiny_images, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_faults_of_a_later_recipe_are_found_first(tiny_images: ImageSet, tmp_path: Path) -> None:
    out, long = tmp_path / "out", recipe_file(tmp_path, "long")
    large = recipe_file(tmp_path, "large", "segmenter.train.batch_size=99")
    shipped = recipe_file(
        tmp_path, "shipped", "backbone.name=mobilenetv2", "backbone.from_scratch=false"
    )
    missing, broken = tmp_path / "missing.pth", tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    for asked, weights, what in (
        ([long, large], [], r"segmenter\.train\.batch_size is 99, but list 'train' has 10"),
        ([long, shipped], [f"{missing}"], "missing.pth"),
        ([long, shipped], [f"mobilenetv2={broken}"], "broken.safetensors"),
    ):
        with pytest.raises((ConfigError, ArtifactError, DataError), match=what):
            compare_into(out, asked, tiny_images, weights)
    unlabelled = [replace(sample, labels=None) for sample in tiny_images.samples]
    with pytest.raises(DataError, match="has no image-level labels"):
        compare_into(out, [long], replace(tiny_images, samples=tuple(unlabelled)))
    with pytest.raises(ConfigError, match=f"`reuse`: '{tmp_path}' is no run"):
        compare_into(out, [long], tiny_images, reuse=[tmp_path])
    assert not out.exists()


def test_runs_that_cannot_be_measured_are_found_first(
    tiny_images: ImageSet, finished_run: Path, tmp_path: Path
) -> None:
    out, long = tmp_path / "out", recipe_file(tmp_path, "long")
    fewer = replace(tiny_images, samples=tiny_images.samples[1:])
    other = replace(tiny_images, classes=("cat", "dog"))
    broken = copy_run(finished_run, tmp_path / "broken")
    (broken / "segmenter" / "weights.safetensors").write_bytes(b"no weights")
    nameless = copy_run(finished_run, tmp_path / "nameless")
    (nameless / "run.json").unlink()
    for run, images, what in (
        (finished_run, fewer, "was made of other images"),
        (finished_run, other, "classes"),
        (broken, tiny_images, "segmenter/weights.safetensors"),
        (nameless, tiny_images, "is no run: expected a run.json that names its classes"),
    ):
        with pytest.raises(ArtifactError, match=what):
            compare_into(out, [long, run], images)
    assert not out.exists()


def test_folders_that_hold_something_else_are_found_first(
    tiny_images: ImageSet, finished_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = [recipe_file(tmp_path, name) for name in ("long", "short")]
    copy_run(finished_run, out / "short")
    with pytest.raises(ArtifactError, match="short' holds another run"):
        compare_into(out, asked, tiny_images)
