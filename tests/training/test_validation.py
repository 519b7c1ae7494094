"""A segmenter is measured once on the validation list, and again when anything changes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_run import copy_run

from wsss.runtime.io.image_io import write_label_map
from wsss.runtime.io.progress import SILENT
from wsss.training.data.image_set import ImageSet, MaskFile, Sample
from wsss.training.engine.run import Run, read_stage
from wsss.training.evaluation import miou as evaluation
from wsss.training.evaluation.miou import EvalReport
from wsss.training.methods.shared import segmenter_stage as segmenter
from wsss.training.methods.shared.segmenter_stage import EVALUATION, evaluate_on_validation
from wsss.training.recipes import load_recipe


@pytest.fixture
def run(finished_run: Path, tiny_images: ImageSet, tmp_path: Path) -> Run:
    folder = copy_run(finished_run, tmp_path / "run")
    recipe = load_recipe(folder / "recipe.toml")
    return Run(folder, recipe, tiny_images, None, None, None, torch.device("cpu"), SILENT)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of images of every measurement that is made."""
    counts: list[int] = []

    def evaluate(predictions: object, images: ImageSet, *rest: object, **named: object) -> object:
        counts.append(len(images.samples))
        return evaluation.evaluate(predictions, images, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(segmenter, "evaluate", evaluate)
    return counts


def _with_mask(run: Run, changed: Sample, mask: MaskFile | None) -> Run:
    samples = tuple(
        replace(sample, mask=mask) if sample.name == changed.name else sample
        for sample in run.images.samples
    )
    return replace(run, images=replace(run.images, samples=samples))


def evaluate_run(run: Run) -> EvalReport | None:
    return evaluate_on_validation(run, run.folder / "segmenter", run.recipe.segmenter)


def test_what_the_stage_has_measured_is_not_measured_again(run: Run, measured: list[int]) -> None:
    found = evaluate_run(run)
    assert found is not None and not measured
    figures = read_stage(run.folder / "segmenter")["figures"]
    assert (found.miou, found.images) == (figures["miou"], figures["images"])
    (run.folder / "segmenter" / EVALUATION).unlink()
    again = evaluate_run(run)
    assert again is not None and measured == [found.images]
    assert again.to_json() == found.to_json()


def test_other_weights_are_measured_anew(run: Run, measured: list[int]) -> None:
    path = run.weights("segmenter")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name] + 1}, path, metadata)
    evaluate_run(run)
    assert len(measured) == 1


def test_other_settings_and_masks_are_measured_anew(run: Run, measured: list[int]) -> None:
    evaluate_on_validation(
        run,
        run.folder / "segmenter",
        run.recipe.segmenter.model_copy(update={"flip": not run.recipe.segmenter.flip}),
    )
    assert len(measured) == 1
    mirrored = run.recipe.cam.model_copy(update={"align": "reference"})
    assert run.recipe.cam.align == "corners"
    evaluate_run(replace(run, recipe=run.recipe.model_copy(update={"cam": mirrored})))
    assert len(measured) == 2


def test_other_masks_are_measured_anew(run: Run, measured: list[int], tmp_path: Path) -> None:
    assert run.val_set is not None
    sample = run.val_set.samples[0]
    masks = {"same": sample.load_mask(), "other": 1 - sample.load_mask().clip(0, 1)}
    places = [tmp_path / f"{name}.png" for name in masks]
    for place, mask in zip(places, masks.values(), strict=True):
        write_label_map(place, mask)
        place.write_bytes(place.read_bytes().ljust(10_000, b"\0"))  # of one size
    assert len({place.stat().st_size for place in places}) == 1
    reports = [evaluate_run(_with_mask(run, sample, MaskFile(place, 2))) for place in places]
    assert len(measured) == 2 and reports[0] is not None
    assert reports[0] != reports[1]


def test_a_list_of_which_some_have_masks(run: Run, measured: list[int]) -> None:
    assert run.val_set is not None
    report = evaluate_run(_with_mask(run, run.val_set.samples[0], None))
    assert report is not None and report.images == len(run.val_set.samples) - 1 == measured[0]
    none = tuple(replace(sample, mask=None) for sample in run.images.samples)
    assert evaluate_run(replace(run, images=replace(run.images, samples=none))) is None


def test_a_run_where_nothing_can_be_written_is_measured(run: Run, measured: list[int]) -> None:
    kept = run.folder / "segmenter" / EVALUATION
    kept.unlink()
    kept.mkdir()
    assert evaluate_run(run) == evaluate_run(run)
    assert len(measured) == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"key": 1}', '{"key": KEY, "report": {}}', '{"key": KEY}']
)
def test_a_file_that_does_not_fit_is_measured_anew(
    run: Run, measured: list[int], text: str
) -> None:
    kept = run.folder / "segmenter" / EVALUATION
    before = kept.read_text()
    kept.write_text(text.replace("KEY", json.dumps(json.loads(before)["key"])))
    evaluate_run(run)
    assert len(measured) == 1 and kept.read_text() == before
