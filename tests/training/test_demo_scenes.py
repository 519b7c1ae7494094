"""Generated demo images: reproducible, exact, and worth learning from."""

from pathlib import Path

import numpy as np
import pytest

from wsss.errors import ConfigError
from wsss.runtime.io.image_io import read_image, read_label_map
from wsss.training.data.readers import read_image_set
from wsss.training.demo.figures import FIGURES
from wsss.training.demo.run import DEMO_CLASSES, write_demo_scenes
from wsss.training.demo.scenes import MIN_VISIBLE, draw_scene

SIZE = (80, 97)


def _files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _label_rows(root: Path) -> dict[str, set[str]]:
    header, *rows = (root / "labels.csv").read_text().splitlines()
    assert header == "file,labels"
    return {file: set(labels.split(";")) for file, labels in (row.split(",") for row in rows)}


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_demo_scenes(tmp_path / name, train=4, val=2, seed=seed, size=SIZE)
    first, second, other = (_files(tmp_path / name) for name in "abc")
    assert first == second
    image = "JPEGImages/train_0000.png"
    assert first[image] != other[image]


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    write_demo_scenes(tmp_path / "few", train=1, val=1, seed=0, size=SIZE)
    write_demo_scenes(tmp_path / "many", train=3, val=2, seed=0, size=SIZE)
    few, many = _files(tmp_path / "few"), _files(tmp_path / "many")
    for name in few:
        if name.endswith(".png"):
            assert few[name] == many[name]


def test_layout_labels_and_masks_agree(tmp_path: Path) -> None:
    write_demo_scenes(tmp_path, train=12, val=6, seed=1, size=SIZE)
    lists = {
        split: (tmp_path / "ImageSets/Segmentation" / f"{split}.txt").read_text().split()
        for split in ("train", "val")
    }
    assert [len(names) for names in lists.values()] == [12, 6]
    assert tuple((tmp_path / "classes.txt").read_text().split()) == DEMO_CLASSES
    rows = _label_rows(tmp_path)
    assert sorted(rows) == sorted(f"{name}.png" for name in lists["train"] + lists["val"])
    for file, labels in rows.items():
        image = read_image(tmp_path / "JPEGImages" / file)
        mask = read_label_map(tmp_path / "SegmentationClass" / file)
        assert image.shape == (*SIZE, 3)
        assert mask.shape == SIZE
        visible = {
            name
            for index, name in enumerate(DEMO_CLASSES)
            if (mask == index + 1).mean() >= MIN_VISIBLE
        }
        assert labels == visible
    for names in lists.values():
        assert set().union(*(rows[f"{name}.png"] for name in names)) == set(DEMO_CLASSES)


def test_the_set_is_read_without_complaint(tmp_path: Path) -> None:
    write_demo_scenes(tmp_path, train=6, val=2, seed=0, size=SIZE)
    images = read_image_set(tmp_path)
    assert images.classes == DEMO_CLASSES
    assert images.splits == ("train", "val")
    assert len(images.samples) == 8
    assert images.findings == ()
    rows = _label_rows(tmp_path)
    for sample in images.samples:
        names = {DEMO_CLASSES[label] for label in sample.labels or ()}
        assert names == rows[f"{sample.name}.png"]
        assert sample.load_mask().shape == SIZE


def test_one_to_three_objects_with_background_left() -> None:
    counts = []
    for index in range(30):
        scene = draw_scene(np.random.default_rng(index), SIZE, first_class=index % len(FIGURES))
        assert index % len(FIGURES) in scene.labels
        assert (scene.mask == 0).mean() > 0.2
        counts.append(len(scene.labels))
    assert set(counts) == {1, 2, 3}


def test_bodies_share_colours_and_markings_do_not() -> None:
    """The median colour of a class, that of its body, varies more within than between classes."""
    medians = {label: [] for label in range(len(FIGURES))}
    for index in range(60):
        label = index % len(FIGURES)
        scene = draw_scene(np.random.default_rng((9, index)), SIZE, first_class=label)
        medians[label].append(np.median(scene.image[scene.mask == label + 1], axis=0))
    within = np.mean([np.std(colours, axis=0).mean() for colours in medians.values()])
    between = np.std([np.mean(colours, axis=0) for colours in medians.values()], axis=0).mean()
    assert within > 1.5 * between
    assert len({figure.colour for figure in FIGURES}) == len(FIGURES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": -1}, "train is -1"),
        ({"seed": -2}, "seed is -2"),
        ({"size": (63, 200)}, "size is 63 x 200, must be at least 64 x 64"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_demo_scenes(tmp_path / "set", **({"train": 1, "val": 1, "seed": 0} | arguments))
    assert not (tmp_path / "set").exists()
