"""Whatever is wrong with the input: one line that names it, exit code 1, and nothing lost."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from command_line import HEIGHT, ODD_IMAGES, WIDTH, break_file, everything, train, wsss
from safetensors.torch import save_file
from tiny_run import copy_run

from wsss.runtime.image_io import read_label_map

# Folders and image sets


@pytest.mark.parametrize(
    "arguments",
    [
        "data ABSENT",
        "train demo --data ABSENT --out OUT",
        "train demo --data DATA --out OUT --seeds ABSENT",
        "eval RUN --data ABSENT",
        "eval ABSENT --data DATA",
        "label ABSENT --model RUN --out OUT",
        "label DATA --model ABSENT --out OUT",
        "label DATA --model RUN --labels ABSENT --out OUT",
    ],
)
def test_no_such_folder(arguments: str, run: Path, tiny_data: Path, tmp_path: Path) -> None:
    absent, out = tmp_path / "no such", tmp_path / "out"
    places = {"ABSENT": absent, "DATA": tiny_data, "RUN": run, "OUT": out}
    outcome = wsss(*(places.get(word, word) for word in arguments.split()))
    assert str(absent) in outcome.line()
    assert not out.exists()


@pytest.mark.parametrize("arguments", ["data SET", "train demo --data SET --out OUT"])
@pytest.mark.parametrize("with_labels", [False, True])
def test_empty_set(arguments: str, with_labels: bool, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    if with_labels:
        (tmp_path / "set" / "labels.csv").write_text("file,labels\na.png,disc\n")
    places = {"SET": tmp_path / "set", "OUT": tmp_path / "out"}
    line = wsss(*(places.get(word, word) for word in arguments.split())).line()
    assert "no images" in line and str(tmp_path / "set") in line
    assert not (tmp_path / "out").exists()


def test_no_images_to_label(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = wsss("label", tmp_path / "empty", "--model", run, "--out", tmp_path / "out")
    assert f"no images in '{tmp_path / 'empty'}'" in outcome.line()


# Labels


def test_image_without_entry_in_the_label_file(own_data: Path, run: Path, tmp_path: Path) -> None:
    labels = own_data / "labels.csv"
    rows = labels.read_text().splitlines()
    labels.write_text("\n".join(row for row in rows if "train_4" not in row))
    out = tmp_path / "out"
    assert "'train_4" in train(own_data, "demo", out).line()
    images = own_data / "JPEGImages"
    outcome = wsss("label", images, "--model", run, "--labels", labels, "--out", out)
    line = outcome.line()
    assert "does not mention image 'train_4.png'" in line and "empty entry" in line
    assert not out.exists()
    assert "train_4" in wsss("data", own_data).succeeded().out


def test_image_of_no_class_is_background(run: Path, photos: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("file,labels\nphoto 0.png,\nphoto 1.png,\n")
    for way in ("cam", "walk", "labels"):
        out = tmp_path / way
        arguments = ("--model", run, "--labels", labels, "--out", out, "--by", way)
        wsss("label", photos, *arguments).succeeded()
        for number in range(2):
            assert not read_label_map(out / "masks" / f"photo {number}.png").any()


def test_label_outside_the_class_list(own_data: Path, run: Path, tmp_path: Path) -> None:
    labels = own_data / "labels.csv"
    labels.write_text(labels.read_text().replace("train_1.png,bar", "train_1.png,unicorn"))
    line = train(own_data, "demo", tmp_path / "out").line()
    assert "'unicorn'" in line and "'train_1'" in line
    images = own_data / "JPEGImages"
    arguments = ("--model", run, "--labels", labels, "--out", tmp_path / "out")
    line = wsss("label", images, *arguments).line()
    assert "'unicorn'" in line and "'train_1.png'" in line and "disc, bar" in line
    assert not (tmp_path / "out").exists()


# Images


@pytest.mark.parametrize("how", ["zero-byte", "corrupt", "truncated"])
def test_broken_image(
    how: str, own_data: Path, recipe_file: Path, run: Path, tmp_path: Path
) -> None:
    """Training stops at it, and goes on when it has been mended; labelling lists it."""
    path = own_data / "JPEGImages" / "train_2.png"
    whole = path.read_bytes()
    break_file(path, how)
    out = tmp_path / "out"
    arguments = (own_data, recipe_file, out, "--stages", "cam")
    assert str(path) in train(*arguments).line()
    assert out.exists() == (how == "truncated")  # what the header tells is found before any work

    assert "unreadable image: 1" in wsss("data", own_data).succeeded().out

    outcome = wsss("label", path.parent, "--model", run, "--out", tmp_path / "labels")
    assert outcome.code == 3 and "12 labelled, 0 kept, 1 failed" in outcome.out
    assert str(path) in (tmp_path / "labels" / "failures.csv").read_text()

    if how == "truncated":
        path.write_bytes(whole)
        train(*arguments).succeeded()


@pytest.mark.parametrize("how", ["zero-byte", "corrupt", "truncated"])
def test_broken_prediction(how: str, run: Path, tiny_data: Path, tmp_path: Path) -> None:
    for suffix, place in ((".png", "labels"), (".npz", "labels/scores")):
        folder = tmp_path / suffix[1:]
        shutil.copytree(run / place, folder, ignore=shutil.ignore_patterns("scores"))
        break_file(folder / f"train_3{suffix}", how)
        line = wsss("eval", folder, "--data", tiny_data, "--split", "train").line()
        assert str(folder / f"train_3{suffix}") in line


@pytest.mark.parametrize("labels_given", [False, True])
def test_odd_images_are_labelled(labels_given: bool, run: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "odd", tmp_path / "out"
    folder.mkdir()
    for name, write in ODD_IMAGES.items():
        write(folder / name)
    arguments: list[object] = ["label", folder, "--model", run, "--out", out]
    if labels_given:
        labels = tmp_path / "labels.csv"
        labels.write_text("file,labels\n" + "".join(f"{name},disc;bar\n" for name in ODD_IMAGES))
        arguments += ["--labels", labels]
    wsss(*arguments).succeeded()
    for name in ODD_IMAGES:
        size = (1, 1) if name == "one_pixel" else (HEIGHT, WIDTH)
        assert read_label_map(out / "masks" / f"{name}.png").shape == size


def test_odd_images_are_learnt_from(recipe_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    for name, write in ODD_IMAGES.items():
        write(data / "images" / name)
    rows = [f"{name},{'bar' if index % 2 else 'disc'}\n" for index, name in enumerate(ODD_IMAGES)]
    (data / "labels.csv").write_text("file,labels\n" + "".join(rows))
    outcome = wsss("data", data).succeeded()
    assert "unreadable image" not in outcome.out
    train(data, recipe_file, tmp_path / "run").succeeded()
    for name in ODD_IMAGES:
        size = (1, 1) if name == "one_pixel" else (HEIGHT, WIDTH)
        assert read_label_map(tmp_path / "run" / "labels" / f"{name}.png").shape == size


# Weights, recipes


def test_weights_of_another_architecture(
    tiny_data: Path, recipe_file: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "vgg16.safetensors"
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, weights)
    changes = ("--set", "backbone.from_scratch=false", "--set", "backbone.name=mobilenetv2")
    line = train(tiny_data, recipe_file, tmp_path / "run", *changes, "--weights", weights).line()
    assert str(weights) in line and "mobilenetv2" in line


class _RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_pickle_that_runs_code(tiny_data: Path, recipe_file: Path, tmp_path: Path) -> None:
    weights, trap = tmp_path / "weights.pth", tmp_path / "trap"
    torch.save({"conv.weight": torch.zeros(1), "x": _RunsCode(trap)}, weights)
    arguments = ("--set", "backbone.from_scratch=false", "--weights", weights)
    line = train(tiny_data, recipe_file, tmp_path / "run", *arguments).line()
    assert str(weights) in line and "could run code" in line and "mkdir" in line
    assert not trap.exists()
    torch.load(weights, weights_only=False)
    assert trap.exists()  # so the file was dangerous indeed


def test_missing_weights(tiny_data: Path, tmp_path: Path) -> None:
    line = train(tiny_data, "affinitynet_mobilenetv2", tmp_path / "run").line()
    assert "--weights" in line and "mobilenetv2" in line
    assert not (tmp_path / "run").exists()


def test_recipe_with_five_faults(tiny_data: Path, recipe_file: Path, tmp_path: Path) -> None:
    faults = {
        "cam.train.epochs=0": "0",
        "cam.treshold=0.3": "no key",
        "walk.beta=fast": "'fast'",
        "backbone.name=resnet9": "'resnet9'",
        "segmenter.scales=[]": "at least 1",
    }
    settings = [word for fault in faults for word in ("--set", fault)]
    line = train(tiny_data, recipe_file, tmp_path / "run", *settings).line()
    assert str(recipe_file) in line
    for fault, shown in faults.items():
        key = fault.split("=")[0]
        assert key in line
        assert shown in line.split(key)[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "named"), [("[cam\n", "line 1"), ("method = 'affinitynet'\nmethod = 'x'\n", "line 2")]
)
def test_recipe_that_is_no_toml(text: str, named: str, tiny_data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "broken.toml"
    recipe.write_text(text)
    line = train(tiny_data, recipe, tmp_path / "run").line()
    assert str(recipe) in line and named in line


def test_unknown_recipe(tiny_data: Path, tmp_path: Path) -> None:
    line = train(tiny_data, "affinitynett", tmp_path / "run").line()
    assert "'affinitynett'" in line and "affinitynet_mobilenetv2" in line


# Output folders


def test_output_folder_of_another_run(
    run: Path, tiny_data: Path, own_data: Path, recipe_file: Path, photos: Path, tmp_path: Path
) -> None:
    mine = copy_run(run, tmp_path / "mine")
    before = everything(mine)
    assert "different recipe" in train(tiny_data, recipe_file, mine, "--set", "name=x").line()
    assert "different data" in train(own_data, recipe_file, mine).line()
    assert (
        "holds no job of `wsss label`"
        in wsss("label", photos, "--model", run, "--out", mine).line()
    )
    force = ("--model", run, "--out", mine, "--overwrite")
    assert "holds no job of `wsss label`" in wsss("label", photos, *force).line()
    assert everything(mine) == before


def test_output_folder_of_another_labelling(
    run: Path, tiny_data: Path, recipe_file: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("label", photos, "--model", run, "--out", out)
    wsss(*arguments).succeeded()
    before = everything(out)
    assert before.keys() >= {"job.json", "masks/photo 0.png", "masks/photo 1.png"}
    assert "different by, run)" in wsss(*arguments, "--by", "cam").line()
    assert "holds no run" in train(tiny_data, recipe_file, out).line()
    assert "holds no run" in train(tiny_data, recipe_file, out, "--overwrite").line()
    assert everything(out) == before


@pytest.mark.parametrize("arguments", ["train RECIPE --data DATA", "label PHOTOS --model RUN"])
def test_output_folder_that_cannot_be(
    arguments: str, run: Path, tiny_data: Path, recipe_file: Path, photos: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    places = {"RECIPE": recipe_file, "DATA": tiny_data, "PHOTOS": photos, "RUN": run}
    words = [places.get(word, word) for word in arguments.split()]
    for out in (file, file / "below"):
        assert str(file) in wsss(*words, "--out", out).line()
    assert file.read_text() == "precious"


def test_stage_that_a_run_has_not(run: Path, tiny_data: Path, photos: Path, tmp_path: Path) -> None:
    half = copy_run(run, tmp_path / "half", without=("affinity", "labels", "segmenter"))
    out = tmp_path / "out"
    for way, stage in (("segmenter", "segmenter"), ("walk", "affinity")):
        outcome = wsss("label", photos, "--model", half, "--out", out, "--by", way)
        assert f"no trained '{stage}' network" in outcome.line()
        assert not out.exists()
    wsss("label", photos, "--model", half, "--out", out, "--by", "cam").succeeded()
    assert "no trained 'segmenter'" in wsss("eval", half, "--data", tiny_data).line()
