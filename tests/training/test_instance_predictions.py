"""Predicted instances from jobs, pairs of folders and COCO files; what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colour_model import ColourModel
from drawn_instances import CLASSES, LISTS, write_scenes
from small_image_sets import coco_document, rectangle, write_coco, write_image

from wsss.errors import ArtifactError, ConfigError, DataError
from wsss.runtime.bulk.plan import Settings
from wsss.runtime.bulk.run import label_in_bulk
from wsss.runtime.instances.instance_map import InstanceMap
from wsss.runtime.io.image_io import write_label_map
from wsss.training.data.image_set import ImageSet, Sample
from wsss.training.data.readers import read_image_set
from wsss.training.evaluation.instance_predictions import open_instance_predictions
from wsss.training.evaluation.instances import evaluate_instances
from wsss.training.predict.measure import measure_instances


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder)
    return folder


@pytest.fixture(scope="module")
def images(devkit: Path) -> ImageSet:
    return read_image_set(devkit)


@pytest.fixture(scope="module")
def job(devkit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `wsss label --instances` writes."""
    out = tmp_path_factory.mktemp("job") / "out"
    settings = Settings(("png", "instances", "coco-instances"))
    label_in_bulk([devkit / "JPEGImages"], ColourModel(), out, settings=settings)
    return out


class Shown:
    """What the photographs show."""

    description, image_labels_used = "shown", None

    def __init__(self, folder: Path) -> None:
        self.scenes = write_scenes(folder)

    def predict(self, sample: Sample) -> InstanceMap:
        return self.scenes[sample.name][1]


@pytest.fixture(scope="module")
def expected(images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    report = evaluate_instances(Shown(tmp_path_factory.mktemp("again")), images, "all").to_json()
    assert 5 < report["ap50"] < 95 and report["predicted"] > 20
    return report


def figures(report: Any) -> dict[str, Any]:
    return {k: v for k, v in report.to_json().items() if k not in ("predictions", "data")}


def results_of(job: Path) -> list[dict[str, Any]]:
    """The bare list of results, with ids as the digits of names."""
    document = json.loads((job / "instances.json").read_text())
    names = {image["id"]: image["file_name"].removesuffix(".png") for image in document["images"]}
    return [
        {
            "image_id": names[item["image_id"]],
            **{key: item[key] for key in ("category_id", "segmentation", "score")},
        }
        for item in document["annotations"]
    ]


@pytest.mark.parametrize("kind", ["job", "pair", "document", "results"])
def test_every_form_gives_the_same_figures(
    kind: str, job: Path, images: ImageSet, expected: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "predictions"
    if kind == "job":
        path = job
    elif kind == "pair":
        path.mkdir()
        for folder in ("SegmentationObject", "SegmentationClass"):
            (path / folder).symlink_to(job / folder)
    elif kind == "document":
        path.write_bytes((job / "instances.json").read_bytes())
    else:
        path.write_text(json.dumps(results_of(job)))
    report = measure_instances(path, images)
    labels = False if kind == "job" else None
    wanted = {k: v for k, v in expected.items() if k not in ("predictions", "data")}
    assert figures(report) == wanted | {"image_labels_used": labels}


def test_a_list_alone(job: Path, images: ImageSet) -> None:
    report = measure_instances(job, images, split="val")
    assert (report.list_name, report.images) == ("val", LISTS["val"])


def test_a_job_of_coco_alone(devkit: Path, images: ImageSet, job: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", Settings(("coco-instances",))
    label_in_bulk([devkit / "JPEGImages"], ColourModel(), out, settings=settings)
    report = measure_instances(out, images)
    assert report.predictions == f"instances in {out / 'instances.json'}"
    assert figures(report) == figures(measure_instances(job, images))


@pytest.mark.parametrize("formats", [("png",), ("png", "instances", "tar")])
def test_jobs_that_cannot_be_measured(
    formats: tuple[str, ...], devkit: Path, images: ImageSet, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    label_in_bulk([devkit / "JPEGImages"], ColourModel(), out, settings=Settings(formats))
    with pytest.raises(
        ConfigError, match=r"was written in the formats .*: label again .* instances"
    ):
        measure_instances(out, images)


def test_places_without_instances(images: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no instances: expected a job of"):
        measure_instances(tmp_path, images)


def test_images_that_were_not_labelled(job: Path, images: ImageSet, tmp_path: Path) -> None:
    stranger = replace(images.samples[0], name="stranger")
    for path in (job, job / "instances.json"):
        with pytest.raises(ArtifactError, match=r"no prediction .* for image 'stranger': make"):
            open_instance_predictions(path, images).predict(stranger)
    (tmp_path / "results.json").write_text("[]")  # a list names only what has instances
    found = open_instance_predictions(tmp_path / "results.json", images).predict(images.samples[0])
    assert len(found.classes) == len(found.pixels) == 0


def test_a_pair_without_scores(tmp_path: Path, images: ImageSet) -> None:
    sample = images.samples[0]
    for folder in ("SegmentationObject", "SegmentationClass"):
        write_label_map(tmp_path / folder / f"{sample.name}.png", np.ones((40, 60), np.uint8))
    with pytest.raises(DataError, match=r"has no scores, expected .*: evaluate a COCO JSON file"):
        open_instance_predictions(tmp_path, images).predict(sample)


def document(annotation: dict[str, Any], names: tuple[str, ...] = CLASSES) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "train_0.png"}],
        "categories": [{"id": 7 + place, "name": name} for place, name in enumerate(names)],
        "annotations": [annotation],
    }


GOOD = {"image_id": 1, "category_id": 8, "segmentation": [rectangle(1, 2, 3, 4)], "score": 0.5}


def test_classes_go_by_their_names(images: ImageSet, tmp_path: Path) -> None:
    path = write_coco(tmp_path / "p.json", document(GOOD, ("dog", "cat")))
    found = open_instance_predictions(path, images).predict(images.samples[0])
    assert found.classes.tolist() == [CLASSES.index("cat")]
    rows, columns = np.divmod(found.pixels, found.size[1])
    assert found.size == (40, 60) and (rows.min(), rows.max()) == (1, 3)
    assert (columns.min(), columns.max(), len(found.pixels)) == (2, 5, 12)


def test_masks_may_overlap(images: ImageSet, tmp_path: Path) -> None:
    results = [
        {"image_id": "train_0", "category_id": 1, "segmentation": [shape], "score": score}
        for shape, score in ((rectangle(0, 0, 9, 9), 0.5), (rectangle(0, 0, 9, 5), 0.75))
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    found = open_instance_predictions(path, images).predict(images.samples[0])
    assert np.bincount(found.owners).tolist() == [81, 45]
    assert len(np.unique(found.pixels)) == 81


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": None}, "has an annotation without a score"),
        ({"score": float("nan")}, "has an annotation without a score"),
        ({"score": "high"}, "has an annotation without a score"),
        ({"image_id": 5}, "has an annotation of the image 5, which is not known: .* such as 1"),
        ({"category_id": 1}, "of the category 1, which is not known: expected one such as 7, 8"),
        ({"image_id": None}, "has an entry in 'annotations' without image_id and category_id"),
    ],
)
def test_documents_that_are_refused(
    change: dict[str, Any], message: str, images: ImageSet, tmp_path: Path
) -> None:
    path = write_coco(tmp_path / "p.json", document(GOOD | change))
    with pytest.raises(DataError, match=message):
        open_instance_predictions(path, images)


def test_strange_classes_and_masks(images: ImageSet, tmp_path: Path) -> None:
    path = write_coco(tmp_path / "p.json", document(GOOD, ("dog", "cow")))
    with pytest.raises(DataError, match="has the class 'cow', the image set has cat, dog"):
        open_instance_predictions(path, images)
    code = {"counts": [0, 4], "size": [2, 2]}
    path = write_coco(tmp_path / "p.json", document(GOOD | {"segmentation": code}))
    predictions = open_instance_predictions(path, images)
    with pytest.raises(DataError, match=r"image 'train_0' of .*: a run-length code has the size"):
        predictions.predict(images.samples[0])
    path.write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        open_instance_predictions(path, images)


def test_ids_of_a_coco_set(tmp_path: Path) -> None:
    """A bare list means the ids of the annotation files that lie with the images."""
    for name in ("b", "a"):
        write_image(tmp_path / f"{name}.jpg")
    truths = [
        {"image_id": 2, "category_id": category, "segmentation": [rectangle(0, left, 2, 2)]}
        for category, left in ((7, 0), (9, 3))  # cat, ant
    ]
    write_coco(tmp_path / "instances.json", coco_document(["b.jpg", "a.jpg"], truths))
    results = [truth | {"score": 0.5} for truth in truths]
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "r.json"
    path.write_text(json.dumps(results))
    images = read_image_set(tmp_path)
    report = measure_instances(path, images)
    assert (report.ap, report.instances, report.predicted) == (100, 2, 2)
    other = write_coco(tmp_path / "instances_val.json", coco_document(["c.jpg"], []))
    with pytest.raises(DataError, match=r"id 1 means 'c' in .* and 'b' in another"):
        open_instance_predictions(path, images)
    other.unlink()


def test_digits_of_names_are_ids(tmp_path: Path) -> None:
    samples = [
        Sample(name, write_image(tmp_path / f"{name}.jpg"), (0,))
        for name in ("2007_000032", "2007_000033", "x_1", "y_1", "none", "img_07", "img_7")
    ]
    images = ImageSet(tmp_path, "test", CLASSES, tuple(samples))
    row = {"category_id": 2, "segmentation": [rectangle(0, 0, 1, 2)], "score": 1}
    path = tmp_path / "results.json"
    path.write_text(json.dumps([row | {"image_id": 2007000033}, row | {"image_id": "y_1"}]))
    found = [open_instance_predictions(path, images).predict(sample) for sample in samples]
    assert [len(each.classes) for each in found] == [0, 1, 0, 1, 0, 0, 0]
    for number in (1, 7):  # which two names have
        path.write_text(json.dumps([row | {"image_id": number}]))
        with pytest.raises(DataError, match=f"of the image {number}, which is not known"):
            open_instance_predictions(path, images)
