"""What `wsss compare` runs, what it takes as it is, and what it shows of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import CLASSES, NUM_TRAIN, NUM_VAL, copy_run, tiny_recipe

from wsss.runtime.io.progress import Progress
from wsss.training.compare import compare as module
from wsss.training.compare.compare import Comparison, compare
from wsss.training.data.image_set import ImageSet
from wsss.training.engine.run import read_stage
from wsss.training.recipe.recipe import dump_recipe


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of two recipes that have their CAMs and seeds in common."""
    folder = tmp_path_factory.mktemp("recipes")
    same = ["seeds.rule=constant", "seeds.foreground=0.3", "seeds.background=0.05"]
    files = {}
    for name, changed in (("long", "walk.steps=8"), ("short", "walk.steps=1")):
        path = folder / f"{name}.toml"
        path.write_text(dump_recipe(tiny_recipe(f"name={name}", changed, *same)))
        files[name] = str(path)
    return files


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory,
    recipes: dict[str, str],
    finished_run: Path,
    tiny_images: ImageSet,
) -> tuple[Path, Comparison, list[str]]:
    out, notes = tmp_path_factory.mktemp("compared") / "out", Notes()
    asked = [*recipes.values(), str(finished_run)]
    found = compare(asked, tiny_images, out, weights={}, device="cpu", progress=notes)
    return out, found, notes.lines


def test_recipes_are_run_and_runs_are_taken(
    compared: tuple[Path, Comparison, list[str]], finished_run: Path
) -> None:
    out, found, notes = compared
    assert list(found.runs) == ["long", "short", finished_run.name]
    assert {path.name for path in out.iterdir()} == {"long", "short", "measured.json"}
    # The run that is given last has the same CAMs, and others' seeds and walk.
    taken = [line for line in notes if "taken over" in line]
    assert taken == [
        f"cam: taken over from '{finished_run}'",
        *(f"{stage}: taken over from '{out / 'long'}'" for stage in ("cam", "seeds", "affinity")),
    ]


def test_rows_are_the_figures_of_the_stages(
    compared: tuple[Path, Comparison, list[str]], finished_run: Path
) -> None:
    out, found, _ = compared
    assert [(row.recipe, row.stage) for row in found.rows] == [
        (name, stage)
        for name in ("long", "short", finished_run.name)
        for stage in ("cam", "walk", "labels", "segmenter")
    ]
    for row in found.rows:
        run = finished_run if row.recipe == finished_run.name else out / row.recipe
        record = read_stage(run / {"walk": "labels"}.get(row.stage, row.stage))
        key = "walk_miou" if row.stage == "walk" else "miou"
        assert row.miou == record["figures"][key]
        within = row.stage == "walk"  # a part of the stage that stands in another row
        assert row.seconds == (None if within else record["seconds"])
        assert row.host_mib == (None if within else record["memory"]["host_mib"])
        assert row.images == (NUM_VAL if row.stage == "segmenter" else NUM_TRAIN)
        assert row.published is None  # these are no classes of VOC
        # The same evaluation, class by class.
        values = [value for value in row.classes.values() if value is not None]
        assert row.classes.keys() == {"background", *CLASSES}
        assert sum(values) / len(values) == pytest.approx(row.miou, abs=0.01)
    miou = {(row.recipe, row.stage): row.miou for row in found.rows}
    assert miou["long", "cam"] == miou["short", "cam"]
    assert miou["long", "walk"] != miou["short", "walk"]


def test_json_has_rows(compared: tuple[Path, Comparison, list[str]]) -> None:
    content = json.loads(json.dumps(compared[1].to_json(), allow_nan=False))
    for row in content["rows"]:
        assert {"recipe", "stage", "miou"} <= row.keys()


def test_a_second_call_measures_nothing_again(
    compared: tuple[Path, Comparison, list[str]],
    recipes: dict[str, str],
    tiny_images: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, found, _ = compared

    def fail(*arguments: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(module, "iou_columns", fail)
    notes = Notes()
    again = compare([recipes["short"]], tiny_images, out, weights={}, progress=notes)
    assert again.rows == [row for row in found.rows if row.recipe == "short"]
    assert [line for line in notes.lines if "up to date" in line] == [
        f"{stage}: up to date" for stage in ("cam", "seeds", "affinity", "labels", "segmenter")
    ]


def test_stages_of_further_runs_are_taken_over(
    compared: tuple[Path, Comparison, list[str]],
    recipes: dict[str, str],
    tiny_images: ImageSet,
    tmp_path: Path,
) -> None:
    out, found, _ = compared
    reuse, notes = [out / "long", out / "short"], Notes()
    asked = [recipes["short"]]
    again = compare(asked, tiny_images, tmp_path, weights={}, reuse=reuse, progress=notes)
    assert again.rows == [row for row in found.rows if row.recipe == "short"]
    assert [line for line in notes.lines if "taken over" in line] == [
        *(f"{stage}: taken over from '{out / 'long'}'" for stage in ("cam", "seeds", "affinity")),
        *(f"{stage}: taken over from '{out / 'short'}'" for stage in ("labels", "segmenter")),
    ]


def test_other_masks_are_measured_again(
    compared: tuple[Path, Comparison, list[str]],
    finished_run: Path,
    tiny_images: ImageSet,
    tmp_path: Path,
) -> None:
    out, found, _ = compared
    copied = copy_run(finished_run, tmp_path / finished_run.name)  # its measurement changes
    half = [
        replace(sample, mask=sample.mask if index % 2 else None)
        for index, sample in enumerate(tiny_images.samples)
    ]
    fewer = replace(tiny_images, samples=tuple(half))
    again = compare([str(copied)], fewer, out, weights={})
    of_cams = {row.stage: row for row in again.rows}["cam"]
    before = [row for row in found.rows if row.recipe == finished_run.name]
    assert of_cams.images == NUM_TRAIN // 2
    assert of_cams.miou != {row.stage: row for row in before}["cam"].miou
