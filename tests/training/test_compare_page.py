"""What a comparison of methods shows: its page and its table."""

import csv
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tiny_run import CLASSES, NUM_TRAIN, NUM_VAL, copy_run

from wsss.training.compare.compare import Comparison, compare, write_compare_table
from wsss.training.compare.page import write_compare_page
from wsss.training.data.image_set import ImageSet
from wsss.training.engine.run import read_stage

STAGES = {
    "affinitynet": ["cam", "walk", "labels", "segmenter"],
    "sec": ["cam", "segmenter"],
    "cian": ["cam", "cian", "labels", "segmenter"],
    "selfguided": ["cam", "segmenter", "step1", "step2", "step3", "labels"],
}
"""What is measured of each method."""
ABSENT = "\N{EN DASH}"


class Cells(HTMLParser):
    """Texts of table cells by row, and the number of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures = 0
        self._inside = False
        self.notes: list[str] = []
        """Small texts within cells, which are not part of theirs."""
        self._is_note = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True
        self.pictures += tag == "img"
        self._is_note |= tag == "small"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inside = False
        if tag == "small":
            self._is_note = False

    def handle_data(self, data: str) -> None:
        if self._is_note:
            self.notes.append(data)
        elif self._inside:
            self.rows[-1][-1] += data.strip()


@pytest.fixture(scope="module")
def methods(
    tmp_path_factory: pytest.TempPathFactory,
    finished_run: Path,
    finished_sec_run: Path,
    finished_cian_run: Path,
    finished_self_guided_run: Path,
    tiny_images: ImageSet,
) -> Comparison:
    """A run of each method by its name; the first has seen a GPU."""
    folder = tmp_path_factory.mktemp("methods")
    runs = (finished_run, finished_sec_run, finished_cian_run, finished_self_guided_run)
    folders = [copy_run(run, folder / name) for name, run in zip(STAGES, runs, strict=True)]
    path = folders[0] / "affinity" / "stage.json"
    record = json.loads(path.read_text())
    record |= {"seconds": 65.0, "memory": {"host_mib": 2345, "gpu_mib": 1234}}
    path.write_text(json.dumps(record))
    asked = [str(path) for path in folders]
    return compare(asked, tiny_images, folder / "out", weights={}, device="cpu")


def cells_of(comparison: Comparison, path: Path, pictures: int = 0) -> Cells:
    page = write_compare_page(comparison, path, pictures=pictures)
    cells = Cells()
    cells.feed(page.read_text(encoding="utf-8"))
    return cells


def test_rows_of_every_method(methods: Comparison) -> None:
    found = {name: [row.stage for row in methods.rows if row.recipe == name] for name in STAGES}
    assert found == STAGES
    for row in methods.rows:
        # Measured now, class by class, it is what the stage measured.
        own = methods.runs[row.recipe].finished
        keys = {"walk": "walk_miou"} | {
            step: f"{step}_miou" for step in ("step1", "step2", "step3")
        }
        figures = own["labels" if row.stage in keys else row.stage]["figures"]
        assert row.miou == figures[keys.get(row.stage, "miou")]
        assert row.classes.keys() == {"background", *CLASSES}
        on_validation = row.stage in ("cian", "segmenter")
        assert row.images == (NUM_VAL if on_validation else NUM_TRAIN)
        assert row.list_name == ("val" if on_validation else "train")
        assert row.image_labels_used is not on_validation
        has_threshold = row.stage in ("cam", "walk", "step1", "step2", "step3")
        assert str(row.background).startswith("threshold") == has_threshold
        assert (row.seconds is None) == (row.stage in keys)  # the stage's own row has them


def test_what_the_figures_stand_on_is_said(methods: Comparison, tmp_path: Path) -> None:
    """CIAN as published labels training images without their image-level labels."""
    folders = [copy_run(methods.runs[name].run.folder, tmp_path / name) for name in STAGES]
    path = tmp_path / "cian" / "labels" / "stage.json"
    record = json.loads(path.read_text())
    record["settings"]["labels.present_only"] = False
    record["digest"] = "of other labels"
    path.write_text(json.dumps(record))
    asked = [str(folder) for folder in folders]
    found = compare(asked, methods.images, tmp_path / "out", weights={}, device="cpu")
    used = {row.recipe: row.image_labels_used for row in found.rows if row.stage == "labels"}
    assert used == {"affinitynet": True, "cian": False, "selfguided": True}
    notes = cells_of(found, tmp_path / "compare.html").notes
    assert f"val, {NUM_VAL} images, no labels given" in notes
    assert (
        f"affinitynet, selfguided: train, {NUM_TRAIN} images, labels given; "
        f"cian: train, {NUM_TRAIN} images, no labels given"
    ) in notes
    assert any(
        note.startswith(f"train, {NUM_TRAIN} images, labels given, threshold") for note in notes
    )


def test_the_page_shows_every_figure_and_the_same_photographs(
    methods: Comparison, tmp_path: Path
) -> None:
    cells = cells_of(methods, tmp_path / "compare.html", pictures=2)
    for stage in {stage for stages in STAGES.values() for stage in stages}:
        miou = {row.recipe: f"{row.miou:.1f}" for row in methods.rows if row.stage == stage}
        assert [stage, *(miou.get(name, ABSENT) for name in STAGES)] in cells.rows
    # Two images with photo, truth and four segmenters, and with three methods' labels.
    assert cells.pictures == 2 * (2 + 4) + 2 * (2 + 3)
    assert sum(row.count("no such step") for row in cells.rows) == 2
    assert not any("not run" in cell for row in cells.rows for cell in row)
    text = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "score 0 to 1" not in text  # label maps alone are drawn


def test_photographs_are_those_that_a_method_has(methods: Comparison, tmp_path: Path) -> None:
    of_sec = Comparison(
        methods.images,
        {"sec": methods.runs["sec"]},
        {"sec": methods.columns["sec"]},
        [row for row in methods.rows if row.recipe == "sec"],
    )
    cells = cells_of(of_sec, tmp_path / "compare.html", pictures=2)
    assert cells.pictures == 2 * (2 + 1)
    assert not any("no such step" in row for row in cells.rows)


def test_a_page_of_figures_alone(methods: Comparison, tmp_path: Path) -> None:
    cells = cells_of(methods, tmp_path / "compare.html")
    assert cells.rows and not cells.pictures


def test_the_page_shows_time_and_memory_of_every_stage(methods: Comparison, tmp_path: Path) -> None:
    cells = cells_of(methods, tmp_path / "compare.html")
    assert ["affinity", "1 min 5 s, 2,345 MiB, GPU 1,234 MiB", ABSENT, ABSENT, ABSENT] in cells.rows
    costs = {(cost.recipe, cost.stage): cost for cost in methods.costs()}
    for name, opened in methods.runs.items():
        for stage in opened.stages:
            record, cost = read_stage(opened.run.folder / stage), costs.pop((name, stage))
            assert cost.seconds == record["seconds"]
            assert cost.host_mib == record["memory"]["host_mib"] != 0
    assert not costs
    (total,) = (row for row in cells.rows if row[0] == "all")
    assert total[1].startswith("1 min")


def test_the_page_shows_the_classes_of_every_kind(methods: Comparison, tmp_path: Path) -> None:
    cells = cells_of(methods, tmp_path / "compare.html")
    for kind in ("cam", "walk", "step1", "step2", "step3", "cian", "labels", "segmenter"):
        rows = [row for row in methods.rows if row.stage == kind]
        for name in ("background", *CLASSES):
            values = [row.classes[name] for row in rows]
            assert [name, *(ABSENT if v is None else f"{v:.1f}" for v in values)] in cells.rows


def test_the_table_has_a_line_for_every_figure_and_stage(
    methods: Comparison, tmp_path: Path
) -> None:
    path = write_compare_table(methods, tmp_path / "compare.csv")
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    measured, others = lines[: len(methods.rows)], lines[len(methods.rows) :]
    for row, line in zip(methods.rows, measured, strict=True):
        assert (line["recipe"], line["method"], line["stage"]) == (
            row.recipe,
            row.method,
            row.stage,
        )
        assert line["backbone"] == "small"
        assert math.isclose(float(line["miou"]), row.miou)
        for key in ("seconds", "host_mib", "list_name", "background", "image_labels_used"):
            value = getattr(row, key)
            assert line[key] == ("" if value is None else str(value))
        assert line["published"] == ""
        for name in ("background", *CLASSES):
            value = row.classes[name]
            assert line[f"iou {name}"] == ("" if value is None else str(value))
    assert {(line["recipe"], line["stage"]) for line in others} == {
        ("affinitynet", "seeds"),
        ("affinitynet", "affinity"),
        ("sec", "seeds"),
        ("cian", "seeds"),
    }
    (affinity,) = (line for line in others if line["stage"] == "affinity")
    assert [affinity[key] for key in ("miou", "seconds", "host_mib", "gpu_mib")] == [
        "",
        "65.0",
        "2345",
        "1234",
    ]
