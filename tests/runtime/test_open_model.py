"""`open_model`: modes and defaults of bundles, old, unknown and incomplete ones among them."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from job_specs import spec_of
from small_bundles import read_manifest, write_manifest

from wsss.errors import ArtifactError, ConfigError, ShapeError
from wsss.opening import open_model
from wsss.runtime.bulk.job import _labels_of, read_job
from wsss.runtime.bulk.run import label_in_bulk
from wsss.runtime.bundle.open import open_bundle
from wsss.runtime.predictor import AnyOf, PredictorSpec

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

SCHEMA_1 = Path(__file__).parents[1] / "bundle_of_schema_1"
"""Written and sealed by version 0.1.0. Its graphs label a pixel by its greatest channel, 0 below
100; `label` takes classes, `segmenter` does not."""
IMAGE = np.array([[[255, 0, 0], [0, 200, 0], [0, 0, 150], [90, 90, 90]]], np.uint8)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The same bundle; may be changed."""
    return Path(shutil.copytree(SCHEMA_1, tmp_path / "bundle"))


def of_schema_2(folder: Path, **changes: Any) -> Path:
    """The bundle with the fields that schema 2 added, and changes."""
    manifest = read_manifest(folder)
    del manifest["digest"]
    modes = {
        "walk": {"graph": "label", "settings": "walk", "crf": False},
        "segmenter": {"graph": "segmenter", "settings": "segmenter", "crf": False},
    }
    added = {"schema": 2, "modes": modes, "affinity": None, "instances": []}
    write_manifest(folder, manifest | added | changes)
    return folder


def test_a_bundle_of_schema_1_labels() -> None:
    assert sum(path.stat().st_size for path in SCHEMA_1.iterdir()) < 8000
    with open_model(SCHEMA_1) as model:
        assert model.modes == ("walk", "labels", "segmenter")
        assert (model.classes, model.has_instances) == (("red", "green", "blue"), False)
        for mode in (None, "walk", "labels", "segmenter"):
            found = model.predict_one(IMAGE, mode=mode)
            assert found.label.tolist() == [[1, 2, 3, 0]] and found.classes == (0, 1, 2)
            assert found.confidence is not None and found.scores is not None
            assert found.change is None and found.instances is None
        for given in (["green"], [1], (1,), AnyOf((1,))):
            found = model.predict_one(IMAGE, given)
            assert found.label.tolist() == [[0, 2, 0, 0]] and found.classes == (1,)


def test_the_default_mode(bundle: Path) -> None:
    with open_model(bundle) as model:
        assert model.choose(None, None, has_classes=True) == ("walk", False)
        assert model.choose(None, None, has_classes=False) == ("segmenter", False)
        assert model.choose("labels", None, has_classes=False) == ("labels", False)  # no CRF there
    (bundle / "segmenter.onnx").unlink()
    with open_model(bundle) as model:
        assert model.choose(None, None, has_classes=False) == ("walk", False)


def test_a_bundle_of_a_method_that_nobody_knows_labels(bundle: Path) -> None:
    graphs = read_manifest(bundle)["graphs"]
    graphs = {"spread": graphs["label"], "fine": graphs["segmenter"]}
    modes = {
        "diffused": {"graph": "spread", "settings": "diffusion", "crf": False},
        "refined": {"graph": "fine", "settings": "diffusion", "crf": True},
    }
    of_schema_2(bundle, method="of tomorrow", graphs=graphs, modes=modes, settings={})
    with open_model(bundle) as model:
        assert model.modes == ("diffused", "refined")
        assert model.predict_one(IMAGE).label.tolist() == [[1, 2, 3, 0]]
        assert model.predict_one(IMAGE, ["blue"]).label.tolist() == [[0, 0, 3, 0]]
        assert model.choose(None, None, has_classes=False) == ("refined", False)
        with pytest.raises(ConfigError, match=r"unknown mode 'walk': bundle .* has diffused, ref"):
            model.predict_one(IMAGE, mode="walk")
        with pytest.raises(ConfigError, match="has no dense CRF after mode 'refined'"):
            model.predict_one(IMAGE, crf=True)


@pytest.mark.parametrize("schema", [1, 2])
def test_a_bundle_without_a_graph_serves_the_other_modes(schema: int, bundle: Path) -> None:
    if schema == 2:
        of_schema_2(bundle)
    (bundle / "label.onnx").unlink()
    with pytest.raises(ArtifactError, match="No such file"):
        open_bundle(bundle)
    with open_model(bundle) as model:
        assert model.modes == ("segmenter",)
        assert model.predict_one(IMAGE).label.tolist() == [[1, 2, 3, 0]]
        missing = "mode 'walk' needs graph 'label', which .* lacks: choose mode segmenter, or exp"
        with pytest.raises(ArtifactError, match=missing):
            model.predict_one(IMAGE, mode="walk")
        with pytest.raises(ConfigError, match="takes no image-level classes: leave them out"):
            model.predict_one(IMAGE, ["red"])
    (bundle / "segmenter.onnx").write_bytes(b"another")
    with pytest.raises(ArtifactError, match=r"segmenter\.onnx' has 7 bytes"):
        open_model(bundle)
    (bundle / "segmenter.onnx").unlink()
    with open_model(bundle) as model, pytest.raises(ArtifactError, match="needs graph 'segmenter'"):
        model.predict_one(IMAGE)


def test_a_mode_may_name_a_graph_that_was_never_there(bundle: Path) -> None:
    graphs = read_manifest(bundle)["graphs"]
    files = read_manifest(bundle)["files"]
    of_schema_2(
        bundle,
        graphs={"segmenter": graphs["segmenter"]},
        files={"segmenter.onnx": files["segmenter.onnx"]},
    )
    with open_model(bundle) as model, pytest.raises(ArtifactError, match="needs graph 'label'"):
        model.predict_one(IMAGE, mode="walk")


def test_images_of_several_sizes_keep_their_order() -> None:
    images = [IMAGE, IMAGE[:, :2], IMAGE[:, ::-1], IMAGE[:, 2:]]
    with open_model(SCHEMA_1) as model:
        found = model.predict(images, [None, ["red"], [0, 2], []], mode="walk")
        assert model.predict([]) == []
    labels = [each.label.tolist() for each in found]
    assert labels == [[[1, 2, 3, 0]], [[1, 0]], [[0, 3, 0, 1]], [[0, 0]]]
    assert [each.classes for each in found] == [(0, 1, 2), (0,), (0, 2), ()]


def test_wrong_questions_are_refused() -> None:
    with open_model(SCHEMA_1) as model:
        with pytest.raises(ConfigError, match=r"unknown class 'cat': bundle .* has red, green"):
            model.predict_one(IMAGE, ["cat"])
        for index in (3, -1):
            with pytest.raises(ConfigError, match=f"unknown class {index}"):
                model.predict_one(IMAGE, [index])
        with pytest.raises(ConfigError, match="classes are given for 1 images, expected 2"):
            model.predict([IMAGE, IMAGE], [[0]])
        with pytest.raises(ConfigError, match="mode 'segmenter' takes no image-level classes"):
            model.predict_one(IMAGE, [0], "segmenter")
        for image in (IMAGE[0], IMAGE[..., :2], IMAGE[:0]):
            with pytest.raises(ShapeError, match=r"expected \(H, W, 3\) RGB"):
                model.predict_one(image)
    with pytest.raises(ArtifactError, match="is neither a bundle nor a run"):
        open_model(SCHEMA_1.parent)
    with pytest.raises(ConfigError, match="tells no instances"):
        open_model(SCHEMA_1, instances=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": [0.5]}, r"`thresholds` is \[0.5\], expected 3 numbers between 0 and 1"),
        ({"thresholds": [0.5, 0.5, 2]}, "`thresholds` is"),
        ({"thresholds": ["a", "b", "c"]}, "`thresholds` is"),
        ({"threads": 0}, "`threads` is 0, must be at least 1"),
        ({"backend": "nope"}, "unknown backend 'nope': choose one of auto, onnxruntime"),
        ({"backend": "torch"}, "`torch` no longer computes bundles"),
        ({"device": "nope"}, "unknown device 'nope'"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_model(SCHEMA_1, **options)


def test_engines_of_a_graph_that_was_never_there_are_not_looked_for(bundle: Path) -> None:
    modes = {"walk": {"graph": "gone", "settings": "walk", "crf": False}}
    with open_model(of_schema_2(bundle, modes=modes), backend="tensorrt") as model:
        assert model.modes == ()


def test_predictors_import_neither_torch_nor_onnx() -> None:
    code = "import wsss.runtime.predictor, sys; print({'torch', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


class _Earlier(PredictorSpec):
    """A bundle as version 0.1.0 wrote it into `job.json`."""

    def identity(self) -> Mapping[str, Any]:
        found = dict(super().identity())
        found["by"] = "walk" if found.pop("mode") in ("walk", "labels") else "segmenter"
        return found


def test_a_job_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), IMAGE[..., ::-1])
    spec = spec_of(SCHEMA_1, "walk")
    earlier = _Earlier(*(getattr(spec, each.name) for each in fields(spec)))
    out, images = tmp_path / "out", [tmp_path / "0.png", tmp_path / "1.png"]
    assert label_in_bulk(images, earlier, out, workers=0).labelled == 2
    settings = read_job(out)["settings"]
    assert settings["model"]["by"] == "walk" and "mode" not in settings["model"]
    for mode in ("walk", "labels"):  # whose CRF this recipe has not
        again = label_in_bulk(images, spec_of(SCHEMA_1, mode), out, workers=0)
        assert (again.labelled, again.kept) == (0, 2)
    more = [*images, tmp_path / "2.png"]
    added = label_in_bulk(more, spec, out, workers=0, append=True)
    assert (added.labelled, added.kept, added.remaining) == (1, 2, 0)
    assert read_job(out)["settings"] == settings
    with pytest.raises(ConfigError, match=r"made otherwise \(different mode\)"):
        label_in_bulk(more, spec_of(SCHEMA_1, "segmenter"), out, workers=0)


@pytest.mark.parametrize(
    ("by", "crf", "iterations", "mode", "refined"),
    [
        ("labels", None, 10, "labels", True),
        ("labels", None, 10, "walk", True),
        ("labels", None, 0, "walk", False),
        ("labels", False, 10, "walk", False),
        ("walk", None, 10, "walk", False),
        ("walk", True, 10, "labels", True),
        ("segmenter", None, 10, "segmenter", True),
        ("segmenter", None, 0, "segmenter", False),
        ("segmenter", True, 0, "segmenter", False),
        ("cam", None, 10, "cam", False),
    ],
)
def test_what_an_earlier_version_meant_for_runs(
    by: str, crf: bool | None, iterations: int, mode: str, refined: bool
) -> None:
    section = {"crf": {"iterations": iterations}}
    recipe = {"walk": section, "segmenter": section}
    earlier = {"by": by, "crf": crf, "recipe": recipe, "run": {}}
    now = {"mode": mode, "crf": refined, "recipe": recipe, "run": {}}
    assert _labels_of(earlier) == _labels_of(now)
    assert _labels_of(earlier) != _labels_of(now | {"crf": not refined})
