"""The report page: whole in one file, safe for any name, honest about what has not run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from report_page import read_page

from wsss.errors import ArtifactError
from wsss.runtime.io.image_io import write_label_map
from wsss.runtime.io.score_maps import ScoreMaps, save_score_maps
from wsss.runtime.report.charts import Chart, Curve
from wsss.runtime.report.pictures import encode_png
from wsss.training.data.image_set import ImageSet, MaskFile, Sample
from wsss.training.predict.run_report import stage_charts, write_run_report
from wsss.training.recipe.recipe import dump_recipe
from wsss.training.recipes import load_recipe
from wsss.training.report.page import (
    IouColumn,
    Report,
    Sheet,
    SheetRow,
    StageCard,
    evenly,
    render_report,
)

CLASSES = ("<b>", 'cat "&" dog')
SIZE = (12, 17)


def _picture() -> NDArray[np.uint8]:
    return np.zeros((*SIZE, 3), np.uint8)


def _report() -> Report:
    return Report(
        title="run </title><script>alert(1)</script>",
        lead="lead & more",
        facts=[("Device", "<cpu>")],
        stages=[
            StageCard("cam", "maps", ("48.1", "% mIoU"), {"images": "9"}, "3 s"),
            StageCard("seeds", "never"),
        ],
        sheets=[
            Sheet(
                "Pictures",
                "text",
                [("photo", ""), ("truth", "mask")],
                [SheetRow('"><img src=x>', "<i>", (_picture(), "no mask"))],
                [(CLASSES[0], (128, 0, 0)), (CLASSES[1], (0, 128, 0))],
            )
        ],
        classes=CLASSES,
        iou=[
            IouColumn("CAM", "9 images", 48.06, {"background": 80.0, "<b>": 16.12}),
            IouColumn("segmenter", "not run"),
        ],
        charts=[Chart("loss <x>", "epoch", [Curve("a&b", [0, 1], [2, 1])])],
        recipe='name = "<style>"',
        footer="footer",
    )


def test_names_are_escaped_and_everything_is_inside() -> None:
    page = read_page(render_report(_report()))
    assert len(page.attributes("img")) == 1
    for name in (*CLASSES, "run </title><script>alert(1)</script>", "<cpu>", '"><img src=x>'):
        assert name in page.texts
    assert "a&b" in page.texts
    assert page.attributes("svg")[0]["aria-label"] == "loss <x>"
    assert page.attributes("img")[0]["alt"] == '"><img src=x>'


def test_what_was_not_measured_is_said() -> None:
    text = render_report(_report())
    page = read_page(text)
    assert page.texts.count("not run") == 2
    assert page.texts.count("no mask") == 1
    assert page.texts.count("\u2013") == 4 + 1  # the segmenter's four rows, and CAM of one class
    assert "48.1" in page.texts
    assert "16.1" in page.texts


def test_the_legend_tells_scores_where_there_are_some() -> None:
    (sheet,) = _report().sheets
    for has_scores in (False, True):
        shown = replace(_report(), sheets=[replace(sheet, has_scores=has_scores)])
        assert read_page(render_report(shown)).texts.count("score 0 to 1") == has_scores


def test_a_page_without_charts_has_no_heading_for_them() -> None:
    texts = read_page(render_report(replace(_report(), charts=[]))).texts
    assert "Training" not in texts


def test_samples_are_spread_over_the_list() -> None:
    samples = [Sample(str(index), Path(), None) for index in range(10)]
    assert [sample.name for sample in evenly(samples, 4)] == ["0", "2", "5", "7"]
    assert len(evenly(samples, 99)) == 10


def test_charts_leave_out_what_only_repeats_the_loss(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "epoch": 0.5, "learning_rate": 0.1, "loss": 2.0, "classification": 2.0},
        {"step": 2, "epoch": 1.0, "loss": 1.0, "classification": 1.0, "val_map": 50.0},
    ]
    folder = tmp_path / "cam"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loss, precision = stage_charts(folder)
    assert [curve.name for curve in loss.curves] == ["loss"]
    assert (loss.curves[0].x, loss.curves[0].y) == ([0.5, 1.0], [2.0, 1.0])
    assert precision.curves[0].dashed
    assert (precision.curves[0].x, precision.curves[0].y) == ([1.0], [50.0])
    assert stage_charts(tmp_path / "seeds") == []


def _image_set(root: Path) -> ImageSet:
    samples = []
    for index in range(3):
        name = f"image_{index}"
        picture = np.full((*SIZE, 3), 40 * index, np.uint8)
        root.mkdir(exist_ok=True)
        (root / f"{name}.png").write_bytes(encode_png(picture))
        mask = np.zeros(SIZE, np.uint8)
        mask[:, :8] = 1 + index % 2
        write_label_map(root / f"{name}_mask.png", mask)
        split = "val" if index == 2 else "train"
        labels = (index % 2,)
        source = MaskFile(root / f"{name}_mask.png", 2)
        samples.append(Sample(name, root / f"{name}.png", labels, (split,), source))
    return ImageSet(root, "test layout", CLASSES, tuple(samples))


def _write_run(folder: Path, images: ImageSet, stages: tuple[str, ...]) -> None:
    """A run whose CAMs are right and whose pseudo labels call everything background."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"classes": list(images.classes)}))
    (folder / "recipe.toml").write_text(dump_recipe(load_recipe("demo")))
    train = images.select("train").samples
    for stage in stages:
        (folder / stage).mkdir()
        record = {"stage": stage, "figures": {"miou": 12.34, "images": 2}, "seconds": 65}
        (folder / stage / "stage.json").write_text(json.dumps(record))
    for sample in train:
        scores = (sample.load_mask()[None] > 0).astype(np.float32)
        maps = ScoreMaps(np.array(sample.labels, np.int64), scores, SIZE)
        if "cam" in stages:
            save_score_maps(folder / "cam" / "scores" / f"{sample.name}.npz", maps)
        if "labels" in stages:
            none = replace(maps, scores=np.zeros_like(scores))
            save_score_maps(folder / "labels" / "scores" / f"{sample.name}.npz", none)
            write_label_map(folder / "labels" / f"{sample.name}.png", np.zeros(SIZE, np.uint8))


def test_report_of_a_run_whose_segmenter_is_missing(tmp_path: Path) -> None:
    images = _image_set(tmp_path / "data")
    run = tmp_path / "run & co"
    _write_run(run, images, ("cam", "seeds", "affinity", "labels"))
    path = write_run_report(run, images, device="cpu")
    assert path == run / "report.html"
    page = read_page(path.read_text(encoding="utf-8"))
    assert "run & co" in page.texts
    # Photo, truth, CAM, walk and pseudo label of the two training images.
    assert len(page.attributes("img")) == 2 * 5
    assert {"image_0", "image_1"} <= set(page.texts)
    # Segmenter: its card, its column of the table, and its cell in each row of pictures.
    assert page.texts.count("not run") == 1 + 1 + 2
    assert page.texts.count("12.3") == 4
    # CAMs are the truth; labels find background alone: 7 / 12 of the union, 0 for both classes.
    assert "train, 2 images, labels given, threshold 0.1" in page.texts
    shares = page.texts
    assert shares.count("100.0") == 4
    background = 100 * 9 / 17
    assert shares.count(f"{background:.1f}") == 2
    assert shares.count(f"{background / 3:.1f}") == 2


@pytest.mark.parametrize(
    ("listed", "note"),
    [
        ((), "train, 2 images, labels given"),
        (("image_1",), "measured, 1 images, labels given"),
    ],
)
def test_figures_tell_the_list_that_they_are_of(
    tmp_path: Path, listed: tuple[str, ...], note: str
) -> None:
    """Where the recipe's list is not there, they are of the training list, and say so."""
    images = _image_set(tmp_path / "data")
    samples = [
        replace(sample, splits=(*sample.splits, "measured")) if sample.name in listed else sample
        for sample in images.samples
    ]
    _write_run(tmp_path / "run", images, ("cam",))
    recipe = load_recipe("demo", ["data.figures_split=measured"])
    (tmp_path / "run" / "recipe.toml").write_text(dump_recipe(recipe))
    path = write_run_report(tmp_path / "run", replace(images, samples=tuple(samples)), device="cpu")
    notes = {text for text in read_page(path.read_text()).texts if "labels given" in text}
    assert notes == {f"{note}, threshold 0.1"}


def test_figures_of_which_no_pixel_was_counted(tmp_path: Path) -> None:
    images = _image_set(tmp_path / "data")
    _write_run(tmp_path / "run", images, ("cam", "labels"))
    path = tmp_path / "run" / "labels" / "stage.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"figures": {"miou": None, "images": 2}}))
    page = write_run_report(tmp_path / "run", images, device="cpu").read_text(encoding="utf-8")
    assert "12.3" in page  # of the CAMs
    assert "None" not in page and ">nan" not in page


def test_report_of_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    images = _image_set(tmp_path / "data")
    without_masks = replace(
        images, samples=tuple(replace(sample, mask=None) for sample in images.samples)
    )
    _write_run(tmp_path / "run", images, ("cam",))
    path = write_run_report(tmp_path / "run", without_masks, device="cpu")
    page = read_page(path.read_text(encoding="utf-8"))
    assert len(page.attributes("img")) == 2 * 2
    assert page.texts.count("no mask") == 2
    assert page.texts.count("no masks") == 1


def test_other_classes_and_other_folders_are_refused(tmp_path: Path) -> None:
    images = _image_set(tmp_path / "data")
    with pytest.raises(ArtifactError, match=r"is no run: expected a folder with recipe\.toml"):
        write_run_report(tmp_path, images, device="cpu")
    _write_run(tmp_path / "run", images, ())
    with pytest.raises(ArtifactError, match=r"knows the classes .*; the image set has cow"):
        write_run_report(tmp_path / "run", replace(images, classes=("cow",)), device="cpu")
