"""Bundles of methods without a walk: SEC's, and that of the self-guided network's segmenter."""

from pathlib import Path

import numpy as np
import pytest
from command_line import wsss
from job_specs import spec_of
from untrained_run import CLASSES, write_untrained_run

from wsss.errors import ConfigError
from wsss.export.bundle import ExportSettings, export_run
from wsss.runtime.bundle.open import open_bundle
from wsss.runtime.bundle.predictor import BundlePredictor
from wsss.runtime.io.image_io import read_image, read_label_map
from wsss.training.engine.checkpoint import load_checkpoint, save_checkpoint
from wsss.training.predict.run_predictor import RunPredictor
from wsss.training.recipes import load_recipe

pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'wsss[export]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

pytestmark = pytest.mark.usefixtures("networks_traced_once")

SHORT = ("cam.train.augmentation.crop_size=65", "cam.scales=[1.0]", "segmenter.scales=[1.0,1.5]")
RECIPES = {
    "sec": ("demo_sec", ()),
    "selfguided": ("demo_selfguided", ("segmenter.head=dilated",)),
}


@pytest.fixture(scope="module", params=list(RECIPES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, overrides = RECIPES[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return write_untrained_run(folder, load_recipe(name, [*SHORT, *overrides]))


def test_a_bundle_has_the_classifier_of_stage_cam_and_the_segmenter(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    """The head that makes the self-guided network's labels changes nothing in its bundle."""
    bundle = open_bundle(exported)
    assert bundle.method == RunPredictor(run, "cpu").recipe.method
    assert set(bundle.graphs) == {"cam", "segmenter"}
    assert not {"walk", "instances"} & set(bundle.settings)
    path = run / "segmenter" / "weights.safetensors"
    tensors, header = load_checkpoint(path)
    if bundle.method != "selfguided":
        assert "classifier.weight" not in tensors
        return
    other = write_untrained_run(tmp_path / "other", RunPredictor(run, "cpu").recipe)
    changed = tensors | {"classifier.weight": tensors["classifier.weight"] + 1}
    save_checkpoint(other / "segmenter" / "weights.safetensors", changed, header)
    export_run(other, tmp_path / "bundle", ExportSettings())
    for name in ("cam.onnx", "segmenter.onnx"):
        assert (tmp_path / "bundle" / name).read_bytes() == (exported / name).read_bytes()


def test_bundle_and_run_label_alike(run: Path, exported: Path, photos: Path) -> None:
    by_bundle, by_run = BundlePredictor(exported), RunPredictor(run, "cpu")
    for path in sorted(photos.iterdir()):
        image = read_image(path)
        found = by_bundle.predict_one(image, mode="segmenter").label
        expected = by_run.predict_one(image).label
        assert found.shape == expected.shape == image.shape[:2]
        assert (found == expected).mean() >= 0.999
        assert len(np.unique(found)) > 1


def test_jobs_by_run_and_bundle_write_the_same_masks(
    run: Path, exported: Path, photos: Path, tmp_path: Path
) -> None:
    masks = []
    for model, out in ((exported, tmp_path / "by_bundle"), (run, tmp_path / "by_run")):
        wsss("label", photos, "--model", model, "--out", out).succeeded()
        found = {p.name: read_label_map(p) for p in (out / "masks").glob("*.png")}
        assert len(found) == 3
        masks.append(found)
    for name, label in masks[0].items():
        assert (label == masks[1][name]).mean() >= 0.999


def test_jobs_by_the_cams_of_a_run(run: Path, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    rows = "".join(f"{path.name},{CLASSES[0]};{CLASSES[1]}\n" for path in photos.iterdir())
    table.write_text(f"file,labels\n{rows}")
    way = ("--labels", table, "--mode", "cam")
    wsss("label", photos, "--model", run, "--out", tmp_path / "out", *way).succeeded()
    for path in (tmp_path / "out" / "masks").glob("*.png"):
        assert set(np.unique(read_label_map(path))) <= {0, 1, 2}


def test_what_needs_a_walk_is_refused(run: Path, exported: Path, photos: Path) -> None:
    for kind in ("walk", "labels"):
        with pytest.raises(ConfigError, match=r"unknown mode .*: run .* has segmenter, cam"):
            RunPredictor(run, "cpu").predict_one(read_image(next(photos.iterdir())), (0,), kind)
    with pytest.raises(ConfigError, match=r"unknown mode 'walk': bundle '.*' has segmenter"):
        spec_of(exported, "walk")
