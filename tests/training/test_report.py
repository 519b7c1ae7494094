"""The report page: whole in one file, safe for any name, honest about what has not run."""

import base64
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from wsss.errors import ArtifactError
from wsss.runtime.image_io import decode_image, write_label_map
from wsss.runtime.pictures import encode_png
from wsss.runtime.score_maps import ScoreMaps, save_score_maps
from wsss.training.data.image_set import ImageSet, MaskFile, Sample
from wsss.training.recipe import dump_recipe, load_recipe
from wsss.training.report.charts import Chart, Curve, draw_chart, draw_key, nice_ticks, thin
from wsss.training.report.page import (
    IouColumn,
    Report,
    Sheet,
    SheetRow,
    StageCard,
    render_report,
)
from wsss.training.report.pictures import evenly
from wsss.training.report.run import format_seconds, stage_charts, write_run_report

CLASSES = ("<b>", 'cat "&" dog')
SIZE = (12, 17)


class _Page(HTMLParser):
    """Tags with their attributes, and the texts between them; checks that tags close."""

    VOID = ("meta", "img", "path", "circle")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _read_page(text: str) -> _Page:
    """Parse a page and check what holds for every report."""
    assert "http://" not in text
    assert "https://" not in text
    page = _Page(text)
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "a", "b>"}
    for _, attributes in page.tags:
        assert not {"href", "srcset", "onload", "onerror"} & attributes.keys()
    for image in page.attributes("img"):
        source = image["src"] or ""
        assert source.startswith("data:image/jpeg;base64,")
        decoded = decode_image(base64.b64decode(source.split(",", 1)[1]), "embedded")
        assert [str(side) for side in decoded.shape[:2]] == [image["height"], image["width"]]
    assert "url(" not in text.split("</style>")[0].split("<style>")[1]
    return page


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
        sheet=Sheet(
            "text",
            [("photo", ""), ("truth", "mask")],
            [SheetRow('"><img src=x>', "<i>", (_picture(), "no mask"))],
            [(CLASSES[0], (128, 0, 0)), (CLASSES[1], (0, 128, 0))],
        ),
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
    page = _read_page(render_report(_report()))
    assert len(page.attributes("img")) == 1
    for name in (*CLASSES, "run </title><script>alert(1)</script>", "<cpu>", '"><img src=x>'):
        assert name in page.texts
    assert "a&b" in page.texts
    assert page.attributes("svg")[0]["aria-label"] == "loss <x>"
    assert page.attributes("img")[0]["alt"] == '"><img src=x>'


def test_what_was_not_measured_is_said() -> None:
    text = render_report(_report())
    page = _read_page(text)
    assert page.texts.count("not run") == 2
    assert page.texts.count("no mask") == 1
    assert page.texts.count("\u2013") == 4 + 1  # the segmenter's four rows, and CAM of one class
    assert "48.1" in page.texts
    assert "16.1" in page.texts


def test_a_page_without_charts_has_no_heading_for_them() -> None:
    texts = _read_page(render_report(replace(_report(), charts=[]))).texts
    assert "Training" not in texts


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        (0.03, 0.97, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        (2, 2, (2,)),
        (-3, 120, (-50, 0, 50, 100, 150)),
        (1e-6, 5e-6, (1e-6, 2e-6, 3e-6, 4e-6, 5e-6)),
    ],
)
def test_ticks_are_round_and_enclose_the_values(
    low: float, high: float, ticks: tuple[float, ...]
) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_curves_are_drawn_to_scale() -> None:
    svg = draw_chart(Chart("t", "x", [Curve("a", [0, 5, 10], [0, 10, 0])]))
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", svg.split('class="line"')[1])
    (x0, y0), (x1, y1), (x2, y2) = [(float(x), float(y)) for x, y in points]
    assert x1 == pytest.approx((x0 + x2) / 2)
    assert y0 == y2
    assert y1 < y0  # upwards is smaller in SVG


@pytest.mark.parametrize("y", [[], [math.nan], [math.inf, math.nan]])
def test_a_chart_without_finite_points_says_so(y: list[float]) -> None:
    chart = Chart("t", "x", [Curve("a", [0.0] * len(y), y)])
    assert "no figures recorded" in draw_chart(chart)
    assert draw_key(chart) == '<ul class="key"></ul>'


@pytest.mark.parametrize("y", [[3.0], [3.0, 3.0]])
def test_constant_curves_and_single_points_have_places(y: list[float]) -> None:
    svg = draw_chart(Chart("t", "x", [Curve("a", list(range(len(y))), y)]))
    assert "nan" not in svg
    assert ("<circle" in svg) == (len(y) == 1)


def test_thinning_averages_neighbours() -> None:
    assert thin([0, 1, 2, 3, 4], [0, 2, 4, 6, 9], 3) == ([0.5, 2.5, 4], [1, 5, 9])
    assert thin([0, 1], [5, 6], 2) == ([0, 1], [5, 6])
    assert thin([], [], 2) == ([], [])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3599, "59 min 59 s"), (7380, "2 h 3 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


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
    page = _read_page(path.read_text(encoding="utf-8"))
    assert "run & co" in page.texts
    # Photo, truth, CAM, walk and pseudo label of the two training images.
    assert len(page.attributes("img")) == 2 * 5
    assert {"image_0", "image_1"} <= set(page.texts)
    # Segmenter: its card, its column of the table, and its cell in each row of pictures.
    assert page.texts.count("not run") == 1 + 1 + 2
    assert page.texts.count("12.3") == 4
    # CAMs are the truth; labels find background alone: 7 / 12 of the union, 0 for both classes.
    assert "train, 2 images, labels given" in page.texts
    shares = page.texts
    assert shares.count("100.0") == 4
    background = 100 * 9 / 17
    assert shares.count(f"{background:.1f}") == 2
    assert shares.count(f"{background / 3:.1f}") == 2


def test_report_of_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    images = _image_set(tmp_path / "data")
    without_masks = replace(
        images, samples=tuple(replace(sample, mask=None) for sample in images.samples)
    )
    _write_run(tmp_path / "run", images, ("cam",))
    path = write_run_report(tmp_path / "run", without_masks, device="cpu")
    page = _read_page(path.read_text(encoding="utf-8"))
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
