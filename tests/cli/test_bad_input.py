"""Input that is wrong in part, or strange, and folders of others: nothing is lost.

What is refused at once, and in which words, is in `user_mistakes.txt`.
"""

import os
import shutil
from pathlib import Path

import pytest
import torch
from command_line import HEIGHT, ODD_IMAGES, WIDTH, break_file, everything, train, wsss
from safetensors.torch import save_file
from tiny_run import copy_run

from wsss.runtime.io.image_io import read_label_map

# Labels


def test_what_training_refuses_is_listed_by_data(own_data: Path) -> None:
    labels = own_data / "labels.csv"
    rows = labels.read_text().splitlines()
    labels.write_text("\n".join(row for row in rows if "train_4" not in row))
    assert "train_4" in wsss("data", own_data).succeeded().out


def test_image_of_no_class_is_background(run: Path, photos: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("file,labels\nphoto 0.png,\nphoto 1.png,\n")
    for way in ("cam", "walk", "labels"):
        out = tmp_path / way
        arguments = ("--model", run, "--labels", labels, "--out", out, "--mode", way)
        wsss("label", photos, *arguments).succeeded()
        for number in range(2):
            assert not read_label_map(out / "masks" / f"photo {number}.png").any()


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
    assert "different mode, run)" in wsss(*arguments, "--mode", "cam").line()
    assert "holds no run" in train(tiny_data, recipe_file, out).line()
    assert "holds no run" in train(tiny_data, recipe_file, out, "--overwrite").line()
    assert everything(out) == before


def test_half_a_run_labels_by_what_it_has(run: Path, photos: Path, tmp_path: Path) -> None:
    half = copy_run(run, tmp_path / "half", without=("affinity", "labels", "segmenter"))
    wsss("label", photos, "--model", half, "--out", tmp_path / "out", "--mode", "cam").succeeded()
