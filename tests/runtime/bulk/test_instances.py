"""Jobs that tell instances: what they write, for how many they count, and what they refuse."""

import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from colour_model import ColourModel, OpenColours
from drawn_instances import photograph, scene, write_scenes
from instance_scenes import walk_settings
from local_model import LocalModel
from numpy.typing import NDArray
from synthetic_jobs import records_of
from tiny_run import files_of

from wsss.errors import ConfigError
from wsss.runtime.bulk.plan import DEFAULT_TILE_PIXELS, Settings
from wsss.runtime.bulk.run import Shard, finish_job, label_in_bulk
from wsss.runtime.instances.files import read_ids
from wsss.runtime.instances.instance_map import LEAST_SCORE, InstanceMap
from wsss.runtime.instances.maps import InstanceMaps
from wsss.runtime.instances.settings import InstanceSettings
from wsss.runtime.io.image_io import read_label_map
from wsss.runtime.io.score_maps import ScoreMaps
from wsss.runtime.predictor import Prediction

FORMATS = ("png", "overlay", "instances", "coco-instances")


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder)
    return folder


def label(images: Path, out: Path, model: ColourModel | None = None, **options: object) -> None:
    options.setdefault("settings", Settings(FORMATS))
    summary = label_in_bulk([images], model or ColourModel(), out, **options)
    assert summary.failed == 0


def write_photograph(folder: Path, found: InstanceMap) -> None:
    folder.mkdir()
    pixels = photograph(found)[..., ::-1]
    (folder / "a.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def outputs(out: Path) -> dict[str, bytes]:
    patterns = ("masks/**/*.*", "Seg*/**/*.*", "overlays/**/*.*", "instances.json", "units/*")
    return {name: data for p in patterns for name, data in files_of(out, p).items()}


def test_what_a_job_gives(devkit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    label(devkit / "JPEGImages", out)
    scenes = write_scenes(tmp_path / "again")
    document = json.loads((out / "instances.json").read_text())
    assert len(document["annotations"]) == sum(len(shown) for _, shown in scenes.values()) > 20
    assert [image["file_name"] for image in document["images"]] == sorted(
        f"{name}.png" for name in scenes
    )
    for name, (_, shown) in scenes.items():
        stored = read_ids(out / "SegmentationObject" / f"{name}.png")
        np.testing.assert_array_equal(stored.ids, shown.ids)
        np.testing.assert_array_equal(stored.scores, shown.scores)
        classes = read_label_map(out / "SegmentationClass" / f"{name}.png")
        np.testing.assert_array_equal(classes, shown.label_map())
    assert {record.output: record.instances for record in records_of(out)} == {
        name: Counter((shown.classes + 1).tolist()) for name, (_, shown) in scenes.items()
    }


def instances_of(out: Path) -> tuple[int, dict[str, int]]:
    """What `summary.json` says: of the job, and of each class."""
    summary = json.loads((out / "summary.json").read_text())
    classes = summary["classes"]
    assert {name for name in classes if "instances" not in classes[name]} <= {
        "background",
        "no statement",
    }
    names = classes.keys() & {"cat", "dog"}
    return summary["instances"], {name: classes[name]["instances"] for name in names}


@pytest.mark.parametrize("how", ["at once", "shards", "in two goes"])
def test_the_summary_counts_instances(how: str, devkit: Path, tmp_path: Path) -> None:
    images, out = devkit / "JPEGImages", tmp_path / "out"
    if how == "shards":
        for index in range(2):
            label(images, out, shard=Shard(index, 2))
        finish_job(out)
    else:
        label(images, out)
    if how == "in two goes":
        (out / "units" / "00000.jsonl.gz").unlink()
        label(images, out)
    scenes = write_scenes(tmp_path / "again").values()
    found = np.concatenate([shown.classes for _, shown in scenes])
    cats, dogs = int((found == 0).sum()), int((found == 1).sum())
    assert cats != dogs and min(cats, dogs) > 5
    assert instances_of(out) == (cats + dogs, {"cat": cats, "dog": dogs})


def test_the_summary_of_a_model_without_instances_has_none(devkit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    label_in_bulk([devkit / "JPEGImages"], LocalModel(), out, settings=Settings(("png",)))
    summary = json.loads((out / "summary.json").read_text())
    assert "instances" not in summary and len(summary["classes"]) > 1
    assert not any("instances" in figures for figures in summary["classes"].values())


@pytest.mark.parametrize("how", ["workers", "shards", "threads"])
def test_the_same_bytes_however_it_is_run(how: str, devkit: Path, tmp_path: Path) -> None:
    images, out = devkit / "JPEGImages", tmp_path / "out"
    label(images, tmp_path / "expected")
    if how == "workers":
        label(images, out, workers=2)
    elif how == "threads":
        label(images, out, ColourModel(in_flight=4))
    else:
        for index in (1, 0):
            label(images, out, shard=Shard(index, 2))
        finish_job(out)
    assert outputs(out) == outputs(tmp_path / "expected")


def test_doubtful_pixels_are_of_no_instance(devkit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    label(devkit / "JPEGImages", out, settings=Settings(FORMATS, min_confidence=0.75))
    name = "train_3"
    _, shown = write_scenes(tmp_path / "again")[name]
    stored = read_ids(out / "SegmentationObject" / f"{name}.png")
    assert stored.void[::2].all() and not stored.void[1::2].any()  # half sure of every other row
    np.testing.assert_array_equal(stored.ids[1::2], shown.ids[1::2])
    document = json.loads((out / "instances.json").read_text())
    (image_id,) = (i["id"] for i in document["images"] if i["file_name"] == f"{name}.png")
    areas = [a["area"] for a in document["annotations"] if a["image_id"] == image_id]
    assert areas == np.bincount(shown.ids[1::2].ravel())[1:].tolist()


def test_fragments_are_not_counted(tmp_path: Path) -> None:
    found = scene(np.random.default_rng(3), (40, 60))
    assert len(found) >= 3
    scores = np.append(np.zeros(2, np.float32), found.scores[2:])
    write_photograph(tmp_path / "images", replace(found, scores=scores))
    label(tmp_path / "images", tmp_path / "out")
    (record,) = records_of(tmp_path / "out")
    assert record.instances is not None
    assert sum(record.instances.values()) == len(found) - 2 == (scores >= LEAST_SCORE).sum()
    assert instances_of(tmp_path / "out")[0] == len(found) - 2
    document = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert len(document["annotations"]) == len(found) - 2
    assert read_ids(tmp_path / "out/SegmentationObject/a.png").ids.max() == len(found)


def test_an_image_without_instances(tmp_path: Path) -> None:
    nothing = InstanceMap(
        np.zeros((9, 12), np.uint16), np.zeros(0, np.int64), np.zeros(0, np.float32)
    )
    write_photograph(tmp_path / "images", nothing)
    label(tmp_path / "images", tmp_path / "out")
    (record,) = records_of(tmp_path / "out")
    assert record.instances == {}
    assert instances_of(tmp_path / "out") == (0, {})
    stored = read_ids(tmp_path / "out/SegmentationObject/a.png")
    assert not stored.ids.any() and stored.scores is not None and stored.scores.size == 0
    document = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert len(document["images"]) == 1 and document["annotations"] == []


def test_a_tar_a_unit(devkit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    label(devkit / "JPEGImages", out, settings=Settings((*FORMATS, "tar")))
    with tarfile.open(out / "shards" / "00000.tar") as tar:
        kinds = {name.split(".", 1)[1] for name in tar.getnames()}
    assert {"SegmentationObject.png", "SegmentationClass.png", "masks.png", "json"} <= kinds


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ColourModel("nan"), "the model gave NaN or infinity"),
        (ColourModel("size"), "expected one size"),
    ],
)
def test_answers_that_cannot_be_fail_alone(
    model: ColourModel, reason: str, devkit: Path, tmp_path: Path
) -> None:
    summary = label_in_bulk([devkit / "JPEGImages"], model, tmp_path, settings=Settings(FORMATS))
    assert summary.failed > 0
    failures = (tmp_path / "failures.csv").read_text().splitlines()[1:]
    assert all(",model-failed," in line and reason in line for line in failures)


def test_a_tiled_image_fails(tmp_path: Path) -> None:
    found = InstanceMap(np.zeros((300, 300), np.uint16), np.zeros(0, np.int64), np.zeros(0, "f4"))
    write_photograph(tmp_path / "images", found)
    settings = Settings(FORMATS, tile_pixels=65_536)
    label_in_bulk([tmp_path / "images"], ColourModel(), tmp_path / "out", settings=settings)
    (line,) = (tmp_path / "out" / "failures.csv").read_text().splitlines()[1:]
    assert "an image of 300 x 300 is labelled in tiles" in line
    assert "give `tile_pixels` 90000 or more" in line


@dataclass(frozen=True)
class ColourMaps(ColourModel):
    """Tells what instances are made from instead; classes by colour, an object a connected one."""

    def open(self, threads: int | None) -> "OpenColourMaps":
        return OpenColourMaps(self.fault)


class OpenColourMaps(OpenColours):
    def predict_equal(
        self,
        images: Sequence[NDArray[np.uint8]],
        labels: Sequence[Sequence[int] | None],
        mode: str,
        crf: bool,
    ) -> list[Prediction]:
        return [self._maps(image) for image in images]

    def _maps(self, image: NDArray[np.uint8]) -> Prediction:
        label = image[..., 0] // 51
        # Cells of 4 x 4 pixels, each as a pixel in its middle is.
        cells = np.pad(label, (0, 3), mode="edge")[1:-1:4, 1:-1:4]
        classes = np.unique(cells[cells > 0]).astype(np.int64) - 1
        scores = np.stack([cells == index + 1 for index in classes] or [cells > 0])
        cams = ScoreMaps(classes, scores[: len(classes)].astype(np.float32), label.shape)
        nothing = torch.zeros(3, *cells.shape)
        walk = walk_settings(steps=1, radius=2)
        maps = InstanceMaps(cams, nothing[:1], nothing[1:], walk, InstanceSettings(threshold=0.5))
        return Prediction(label, maps=maps)


@pytest.mark.parametrize("size", [(1100, 3900), (3900, 1100), (250, 330)])
def test_images_of_any_size_have_instances(size: tuple[int, int], tmp_path: Path) -> None:
    """Above 2048 x 2048 pixels, where an image is cut by default, objects lie across the cuts."""
    height, width = size
    assert size == (250, 330) or height * width > DEFAULT_TILE_PIXELS
    drawn = np.zeros((min(size), max(size)), np.uint16)
    rectangles = [(0.1, 0.4, 0.05, 0.95), *((0.5, 0.9, x, x + 0.2) for x in (0.1, 0.4, 0.7))]
    for number, (top, bottom, left, right) in enumerate(rectangles, start=1):
        rows, columns = (
            slice(round(first * side), round(last * side))
            for first, last, side in zip((top, left), (bottom, right), drawn.shape, strict=True)
        )
        drawn[rows, columns] = number
    if height > width:
        drawn = np.ascontiguousarray(drawn.T)
    expected = InstanceMap(drawn, np.array([0, 1, 1, 1]), np.ones(4, np.float32))
    write_photograph(tmp_path / "images", expected)
    label(tmp_path / "images", tmp_path / "out", ColourMaps())
    found = read_ids(tmp_path / "out" / "SegmentationObject" / "a.png")
    shown = read_label_map(tmp_path / "out" / "SegmentationClass" / "a.png")
    assert found.scores is not None and found.scores.shape == (4,) and (found.scores > 0.9).all()
    for number in range(1, 5):
        inside, wanted = found.ids == number, drawn == number
        assert (inside & wanted).sum() >= 0.9 * (inside | wanted).sum()
        assert set(np.unique(shown[inside])) == {int(expected.classes[number - 1]) + 1}


@pytest.mark.parametrize("name", ["instances", "coco-instances"])
def test_models_without_instances_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"`formats` {name} needs instances, which this model"):
        label_in_bulk([tmp_path], LocalModel(), tmp_path / "o", settings=Settings((name,)))
    assert not (tmp_path / "o").exists()
