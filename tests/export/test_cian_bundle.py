"""A bundle of CIAN: its segmenter is the self branch alone, and labels as the run does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import wsss
from torch import nn
from untrained_run import write_untrained_run

from wsss.errors import ArtifactError, ConfigError
from wsss.runtime.bundle import open_bundle
from wsss.runtime.bundle_predictor import BundlePredictor
from wsss.runtime.image_io import read_image, read_label_map
from wsss.training.checkpoint import load_checkpoint, save_checkpoint
from wsss.training.predictor import RunPredictor
from wsss.training.recipe import load_recipe

pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'wsss[export]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

pytestmark = pytest.mark.usefixtures("networks_traced_once")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained, but with an affinity module that adds to the features what it gathers."""
    recipe = load_recipe(
        "demo_cian", ["cam.scales=[1.0]", "cam.train.augmentation.crop_size=65", "cian.channels=8"]
    )
    folder = write_untrained_run(tmp_path_factory.mktemp("cian") / "run", recipe)
    path = folder / "segmenter" / "weights.safetensors"
    tensors, header = load_checkpoint(path)
    torch.manual_seed(1)
    for name in ("query", "key", "value", "out", "norm"):
        nn.init.normal_(tensors[f"affinity.{name}.weight"], std=0.3)
    nn.init.normal_(tensors["head.0.weight"], std=0.3)
    save_checkpoint(path, tensors, header)
    return folder


def test_a_bundle_has_the_classifier_and_the_second_round(exported: Path) -> None:
    opened = open_bundle(exported)
    assert opened.method == "cian"
    assert set(opened.graphs) == {"cam", "segmenter"}


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_bundle_and_run_label_alike(run: Path, exported: Path, photos: Path, backend: str) -> None:
    by_bundle, by_run = BundlePredictor(exported, backend=backend), RunPredictor(run, "cpu")
    kinds = set()
    for path in sorted(photos.iterdir()):
        image = read_image(path)
        # Odd and even parts: keys are pooled with stride 2.
        for part in (image, image[:96, :128], image[:67, :93], image[:33, :40]):
            part = np.ascontiguousarray(part)
            expected = by_run.label(part)
            found = by_bundle.predict(part, None, "segmenter").label
            assert found.shape == part.shape[:2] and (found == expected).mean() >= 0.999
            kinds |= set(np.unique(expected).tolist())
    assert len(kinds) > 1


def test_images_that_share_a_batch_do_not_change_each_other(exported: Path, photos: Path) -> None:
    predictor = BundlePredictor(exported)
    images = np.stack([read_image(path)[:96, :96] for path in sorted(photos.iterdir())])
    together = predictor.predict_batch(images, [None] * len(images), "segmenter")
    for image, found in zip(images, together, strict=True):
        alone = predictor.predict(image, None, "segmenter")
        assert (found.label == alone.label).mean() >= 0.9999


def test_jobs_by_run_and_by_bundle(run: Path, exported: Path, photos: Path, tmp_path: Path) -> None:
    for model, out in ((exported, tmp_path / "by_bundle"), (run, tmp_path / "by_run")):
        wsss("label", photos, "--model", model, "--out", out).succeeded()
    for path in sorted(photos.iterdir()):
        one, two = (
            read_label_map(tmp_path / way / "masks" / f"{path.stem}.png")
            for way in ("by_bundle", "by_run")
        )
        assert (one == two).mean() >= 0.999


def test_there_is_no_walk_to_label_by(run: Path, exported: Path, photos: Path) -> None:
    image = read_image(next(photos.iterdir()))
    with pytest.raises(ConfigError, match="which has no walk: choose of cam, segmenter"):
        RunPredictor(run, "cpu").label(image, None, "labels")
    with pytest.raises(ArtifactError, match="has no graph 'label': it has cam, segmenter"):
        BundlePredictor(exported).predict(image, None, "walk")
