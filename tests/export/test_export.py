"""From a run to a bundle, and from the bundle to labels, with and without torch."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import onnx
import pytest
from untrained_run import CLASSES, untrained_recipe, write_untrained_run

import wsss
from wsss.errors import ArtifactError, ConfigError
from wsss.export import agreement, bundle
from wsss.export.bundle import ExportSettings, export_run
from wsss.export.engines import engine_commands, write_engine_graph
from wsss.export.tensorrt import EngineSettings
from wsss.runtime.bulk.bundle_model import bundle_model
from wsss.runtime.bulk.run import label_in_bulk
from wsss.runtime.bundle import open_bundle
from wsss.runtime.bundle_predictor import BundlePredictor
from wsss.runtime.image_io import read_image, read_label_map
from wsss.training.demo_set.files import write_demo_scenes
from wsss.training.demo_set.scenes import draw_scene
from wsss.training.predictor import RunPredictor
from wsss.training.run_model import run_model

from .tensorrt_support import unsupported

pytest.importorskip("onnxscript", reason="needs onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_run(tmp_path_factory.mktemp("run") / "run", untrained_recipe())


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """A float32 bundle; not to be changed."""
    return export_run(run, run.parent / "bundle", ExportSettings()).bundle.folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_demo_scenes(folder, train=3, val=0, seed=4, size=(97, 130))
    return folder / "JPEGImages"


def labels_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_label_map(path) for path in sorted(folder.glob("masks/*.png"))}


def test_a_bundle_says_what_is_in_it(run: Path, exported: Path) -> None:
    opened = open_bundle(exported)
    assert (opened.classes, opened.method, opened.precision) == (CLASSES, "affinitynet", "fp32")
    assert set(opened.graphs) == {"cam", "affinity", "refine", "label", "segmenter"}
    label = opened.graphs["label"]
    assert [(s.name, s.dtype, s.is_optional) for s in label.inputs] == [
        ("image", "uint8", False),
        ("present", "float32", True),
    ]
    figures = opened.parity["graphs"]["label"]
    assert figures["labels_equal"] >= 0.999 and figures["max_error"]["scores"] < 1e-4
    assert sorted(path.name for path in run.parent.iterdir()) == ["bundle", "run"]  # no leftovers


@pytest.mark.parametrize("kind", ["walk", "segmenter"])
def test_a_bundle_gives_the_labels_of_its_run(
    run: Path, exported: Path, photos: Path, tmp_path: Path, kind: str
) -> None:
    label_in_bulk([photos], bundle_model(exported, kind=kind), tmp_path / "bundle")
    label_in_bulk([photos], run_model(run, kind=kind, crf=False), tmp_path / "run")
    found, expected = labels_in(tmp_path / "bundle"), labels_in(tmp_path / "run")
    assert found.keys() == expected.keys() and len(found) == 3
    same = np.concatenate([(found[name] == expected[name]).ravel() for name in found])
    assert same.mean() >= 0.999


def test_a_bundle_has_the_dense_crf_of_its_run(photos: Path, tmp_path: Path) -> None:
    settings = ("walk.crf.iterations=5", "segmenter.crf.iterations=5")
    run = write_untrained_run(tmp_path / "run", untrained_recipe(*settings))
    asked = ExportSettings(names=("label", "segmenter"))
    folder = export_run(run, tmp_path / "bundle", asked).bundle.folder
    by_bundle, by_run = BundlePredictor(folder, device="cpu"), RunPredictor(run, "cpu")
    images = [read_image(path) for path in sorted(photos.iterdir())]
    for kind, way, labels in (("walk", "labels", (0, 2)), ("segmenter", "segmenter", None)):
        for image in images:
            found = by_bundle.label(image, labels, kind, crf=True)
            assert (found == by_run.label(image, labels, way)).mean() >= 0.999
            assert (found != by_bundle.label(image, labels, kind)).any()


@pytest.mark.parametrize("kind", ["walk", "segmenter"])
def test_a_recipe_without_dense_crf_says_so(exported: Path, kind: str) -> None:
    predictor, image = BundlePredictor(exported, device="cpu"), np.zeros((40, 50, 3), np.uint8)
    with pytest.raises(ConfigError, match=f"'demo' has no dense CRF after '{kind}'"):
        predictor.label(image, None, kind, crf=True)


def plain_session(path: Path) -> "onnxruntime.InferenceSession":
    """As somebody without this package opens a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # silent about defaults of inputs
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_plain_onnxruntime_is_enough(exported: Path) -> None:
    image = draw_scene(np.random.default_rng(0), (97, 130), 0).image
    session = plain_session(exported / "label.onnx")
    present = np.array([[1, 0, 1]], np.float32)
    label = session.run(["label"], {"image": image[None], "present": present})[0][0]
    predictor = BundlePredictor(exported)
    np.testing.assert_array_equal(label, predictor.label(image, (0, 2), "walk"))


def test_openvino_agrees(exported: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="needs openvino, a second runtime")
    image = draw_scene(np.random.default_rng(1), (97, 130), 1).image[None]
    feeds: dict[str, np.ndarray] = {"image": image, "present": np.array([[0, 1, 1]], np.float32)}
    predictor, core = BundlePredictor(exported, backend="onnxruntime"), openvino.Core()
    for name in ("cam", "affinity", "refine", "label", "segmenter"):
        graph = predictor.graph(name)
        inputs = {spec.name: feeds[spec.name] for spec in graph.describe().inputs}
        expected = graph.run(inputs)
        write_engine_graph(exported / f"{name}.onnx", tmp_path / f"{name}.onnx")  # no defaults
        compiled = core.compile_model(
            tmp_path / f"{name}.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        found = compiled(inputs)
        for number, (output, values) in enumerate(expected.items()):
            if output == "label":
                assert (found[number] == values).mean() >= 0.999
            else:
                np.testing.assert_allclose(found[number], values, atol=1e-3)
        feeds |= expected


def test_engine_graphs_hold_nothing_that_tensorrt_documents_as_unsupported(
    exported: Path, tmp_path: Path
) -> None:
    for name in open_bundle(exported).graphs:
        write_engine_graph(exported / f"{name}.onnx", tmp_path / f"{name}.onnx")
        assert unsupported(onnx.load(tmp_path / f"{name}.onnx")) == [], name


def test_a_graph_without_defaults_gives_the_same(exported: Path, tmp_path: Path) -> None:
    assert write_engine_graph(exported / "label.onnx", tmp_path / "label.onnx")
    model = onnx.load(tmp_path / "label.onnx")
    assert "NonZero" not in {node.op_type for node in model.graph.node}
    image = draw_scene(np.random.default_rng(2), (97, 130), 2).image[None]
    feeds = {"image": image, "present": np.array([[0, 1, 0]], np.float32)}
    results = []
    for path in (exported / "label.onnx", tmp_path / "label.onnx"):
        results.append(plain_session(path).run(None, feeds))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][2], results[1][2], atol=1e-5)
    lines = engine_commands(exported, EngineSettings(), ("label", "cam"))
    assert "write_engine_graph" in lines[0] and "present:8x3" in lines[0]
    assert lines[1].startswith("trtexec --onnx=")


def test_half_precision_is_measured_and_refused_below_its_bound(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ExportSettings(precision="fp16", names=("segmenter",))
    result = export_run(run, tmp_path / "fp16", settings)
    figures = result.agreement["segmenter"]
    assert figures.labels_equal >= 0.995 and figures.bytes < figures.bytes_float32
    assert open_bundle(tmp_path / "fp16").precision == "fp16"
    monkeypatch.setitem(agreement.LEAST_AGREEMENT, "fp16", 1.1)
    with pytest.raises(ArtifactError, match=r"in fp16 gives the labels of float32 in 9.*--force"):
        export_run(run, tmp_path / "refused", settings)
    assert not (tmp_path / "refused").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fp16"]


def test_int8_wants_images(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="int8 is calibrated on images: give an image set"):
        export_run(run, tmp_path / "bundle", ExportSettings(precision="int8"))


def test_nothing_of_others_is_overwritten(run: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    for name, message in (("file", "is a file"), ("folder", "not empty and no bundle")):
        with pytest.raises(ArtifactError, match=message):
            export_run(run, tmp_path / name, ExportSettings(), overwrite=True)
    with pytest.raises(ArtifactError, match="is a bundle: choose another --out, or --overwrite"):
        export_run(run, exported, ExportSettings())


def test_a_failed_export_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise ArtifactError("graph 'cam' differs from torch")

    monkeypatch.setattr(bundle, "check_parity", fail)
    with pytest.raises(ArtifactError, match="differs from torch"):
        export_run(run, tmp_path / "bundle", ExportSettings(names=("segmenter",)))
    assert not list(tmp_path.iterdir())


LEFT_OUT = ("torch", "torchgen", "functorch", "onnxscript", "onnx_ir", "numba", "triton", "wsss")


def test_labelling_needs_neither_torch_nor_training_code(
    exported: Path, photos: Path, tmp_path: Path
) -> None:
    """An environment of its own: our packages without torch, and wsss without its upper floors."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if entry.name.split("-")[0].split(".")[0].lower() not in LEFT_OUT and (
            entry.suffix != ".pth" and not entry.name.startswith("__editable__")
        ):
            (packages / entry.name).symlink_to(entry)
    source = Path(wsss.__file__).parent
    upper = shutil.ignore_patterns("training", "export", "__pycache__")
    shutil.copytree(source, packages / "wsss", ignore=upper)
    moved = tmp_path / "elsewhere"
    shutil.copytree(exported, moved)
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    # -S: no site-packages but those of PYTHONPATH.
    python = [sys.executable, "-S", "-c"]
    names = "('torch', 'wsss.training')"
    absent = f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)])"
    shown = subprocess.run([*python, absent], env=environment, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]", shown.stderr
    command = "from wsss.cli.main import main; main()"
    arguments = ["label", str(photos), "--model", str(moved), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*python, command, *arguments, "--json"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["labelled"] == 3
    label_in_bulk([photos], bundle_model(exported), tmp_path / "here")
    for name, label in labels_in(tmp_path / "here").items():
        np.testing.assert_array_equal(label, labels_in(tmp_path / "out")[name])
