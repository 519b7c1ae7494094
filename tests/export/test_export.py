"""From a run to a bundle, and from the bundle to labels, with and without torch."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from job_specs import spec_of
from report_page import read_page
from synthetic_jobs import records_of
from untrained_run import CLASSES, untrained_recipe, write_untrained_run

import wsss
from wsss.errors import ArtifactError, ConfigError
from wsss.export import bundle
from wsss.export.bundle import ExportSettings, export_run
from wsss.export.engines import engine_commands, write_engine_graph
from wsss.export.graphs.subgraph import keep_outputs
from wsss.export.parity import agreement
from wsss.export.tensorrt import EngineSettings
from wsss.opening import open_model
from wsss.runtime.bulk.run import label_in_bulk
from wsss.runtime.bulk.work.records import ImageRecord
from wsss.runtime.bundle.open import MANIFEST, file_entry, open_bundle, seal
from wsss.runtime.bundle.predictor import BundlePredictor
from wsss.runtime.io.image_io import read_image, read_label_map
from wsss.training.demo.run import write_demo_scenes
from wsss.training.demo.scenes import draw_scene
from wsss.training.predict.run_predictor import RunPredictor

from .tensorrt_support import unsupported

pytest.importorskip("onnxscript", reason="needs onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")


pytestmark = pytest.mark.usefixtures("networks_traced_once")


@pytest.fixture(scope="module")
def exported(untrained_bundle: Path) -> Path:
    """A float32 bundle; not to be changed."""
    return untrained_bundle


@pytest.fixture(scope="module")
def run(exported: Path) -> Path:
    """Its run; not to be changed."""
    return exported.parent / "run"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_demo_scenes(folder, train=3, val=0, seed=4, size=(97, 130))
    return folder / "JPEGImages"


def labels_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_label_map(path) for path in sorted(folder.glob("masks/*.png"))}


MOST_CHANGED = "Most changed by the walk"


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
    label_in_bulk([photos], spec_of(exported, kind), tmp_path / "bundle")
    label_in_bulk([photos], spec_of(run, kind, crf=False), tmp_path / "run")
    found, expected = labels_in(tmp_path / "bundle"), labels_in(tmp_path / "run")
    assert found.keys() == expected.keys() and len(found) == 3
    same = np.concatenate([(found[name] == expected[name]).ravel() for name in found])
    assert same.mean() >= 0.999
    for way in ("bundle", "run"):
        changes = [each.change for each in records_of(tmp_path / way)]
        assert all((change is None) == (kind == "segmenter") for change in changes)


@pytest.fixture(scope="module")
def given_labels(photos: Path) -> Path:
    """Classes of each photograph: those that the untrained classifier finds are none."""
    path = photos.parent / "given.csv"
    rows = zip(sorted(photos.iterdir()), ("disc", "bar;ring", "disc;bar;ring"), strict=True)
    path.write_text("file,labels\n" + "".join(f"{file.name},{names}\n" for file, names in rows))
    return path


def test_a_report_shows_first_what_the_walk_changed_most(
    run: Path, exported: Path, photos: Path, given_labels: Path, tmp_path: Path
) -> None:
    bundle_job = spec_of(exported, "walk", has_labels=True)
    run_job = spec_of(run, "walk", has_labels=True)
    for model, way in ((bundle_job, "bundle"), (run_job, "run")):
        label_in_bulk([photos], model, tmp_path / way, labels_path=given_labels)
        records = records_of(tmp_path / way)
        by_change = sorted(records, key=lambda each: -(each.change or 0))
        _expect_order(tmp_path / way, by_change)
    changes = [[each.change for each in records_of(tmp_path / way)] for way in ("bundle", "run")]
    np.testing.assert_allclose(changes[0], changes[1], atol=0.01)  # a cell at a tie


def _expect_order(folder: Path, records: Sequence[ImageRecord]) -> None:
    """The report shows these first among the most changed, with the share of the first."""
    changes = [each.change or 0 for each in records]
    assert len(set(changes)) == len(changes) and changes[0] > 0
    by_change = [each.name for each in records]
    texts = read_page((folder / "report.html").read_text(encoding="utf-8")).texts
    behind = texts[texts.index(MOST_CHANGED) :]
    assert [text for text in behind if text in by_change][: len(records)] == by_change
    captions = [text for text in behind if "changed" in text and "%" in text]
    assert captions[0].endswith(f"changed {100 * changes[0]:.1f} %")


def without_change(exported: Path, target: Path) -> Path:
    """The bundle as it was exported before its graphs told the change."""
    shutil.copytree(exported, target)
    manifest = json.loads((target / MANIFEST).read_text())
    del manifest["digest"]
    for name in ("refine", "label"):
        path, entry = target / f"{name}.onnx", manifest["graphs"][name]
        model = onnx.load(path)
        names = [value.name for value in model.graph.output if value.name != "change"]
        keep_outputs(model, names)
        onnx.save(model, path)
        entry["outputs"] = [each for each in entry["outputs"] if each["name"] != "change"]
        manifest["files"][path.name] = file_entry(path)
    (target / MANIFEST).write_bytes(seal(manifest))
    return target


def test_a_bundle_of_before_labels_and_tells_no_change(
    exported: Path, photos: Path, given_labels: Path, tmp_path: Path
) -> None:
    old = without_change(exported, tmp_path / "old")
    for folder, out in ((old, tmp_path / "by_old"), (exported, tmp_path / "by_new")):
        model = spec_of(folder, "walk", has_labels=True)
        label_in_bulk([photos], model, out, labels_path=given_labels)
    of_old, of_new = records_of(tmp_path / "by_old"), records_of(tmp_path / "by_new")
    assert [each.change for each in of_old] == [None] * 3
    assert None not in [each.change for each in of_new]
    assert [replace(each, change=None, sha256="") for each in of_new] == [
        replace(each, sha256="") for each in of_old
    ]
    assert all(
        np.array_equal(label, labels_in(tmp_path / "by_old")[name])
        for name, label in labels_in(tmp_path / "by_new").items()
    )
    text = (tmp_path / "by_old" / "report.html").read_text(encoding="utf-8")
    assert MOST_CHANGED not in text and "Least sure" in text


def test_a_bundle_has_the_dense_crf_of_its_run(photos: Path, tmp_path: Path) -> None:
    settings = ("walk.crf.iterations=5", "segmenter.crf.iterations=5")
    run = write_untrained_run(tmp_path / "run", untrained_recipe(*settings))
    asked = ExportSettings(names=("label", "segmenter"))
    folder = export_run(run, tmp_path / "bundle", asked).bundle.folder
    by_bundle, by_run = BundlePredictor(folder, device="cpu"), RunPredictor(run, "cpu")
    images = [read_image(path) for path in sorted(photos.iterdir())]
    for kind, way, labels in (("walk", "labels", (0, 2)), ("segmenter", "segmenter", None)):
        for image in images:
            found = by_bundle.predict_one(image, labels, kind, crf=True)
            assert (
                found.label == by_run.predict_one(image, labels, way, True).label
            ).mean() >= 0.999
            assert (found.label == by_run.recipe_label(image, labels, way)).mean() >= 0.999
            assert (found.label != by_bundle.predict_one(image, labels, kind).label).any()
    opened = spec_of(folder, "labels").open(1)
    (found,) = opened.predict(images[:1], [(0, 2)], "labels")
    walked = by_bundle.predict_one(images[0], (0, 2), "walk", crf=True)
    assert np.array_equal(found.label, walked.label)
    assert found.change == by_bundle.predict_one(images[0], (0, 2)).change is not None


@pytest.mark.parametrize("classes", [None, ["disc", "ring"]])
def test_run_and_bundle_have_one_default(
    classes: list[str] | None, photos: Path, tmp_path: Path
) -> None:
    """With a dense CRF in the recipe too, through the same lines, within the parity measured."""
    settings = ("walk.crf.iterations=5", "segmenter.crf.iterations=5")
    run = write_untrained_run(tmp_path / "run", untrained_recipe(*settings))
    bundle = export_run(run, tmp_path / "bundle", ExportSettings()).bundle
    images = [read_image(path) for path in sorted(photos.iterdir())]
    found = {}
    for path in (run, bundle.folder):
        with open_model(path, device="cpu") as model:
            found[path] = [model.predict_one(image, classes) for image in images]
            assert model.modes[:3] == ("walk", "labels", "segmenter")
    graph = "segmenter" if classes is None else "label"
    least = min(bundle.parity["graphs"][graph]["labels_equal"], 0.9999)
    for by_run, by_bundle in zip(*found.values(), strict=True):
        assert (by_run.label == by_bundle.label).mean() >= least
        assert by_run.classes == by_bundle.classes == ((0, 1, 2) if classes is None else (0, 2))
        assert (by_run.change is None) == (by_bundle.change is None) == (classes is None)


@pytest.mark.parametrize("kind", ["walk", "segmenter"])
def test_a_recipe_without_dense_crf_says_so(exported: Path, kind: str) -> None:
    predictor, image = BundlePredictor(exported, device="cpu"), np.zeros((40, 50, 3), np.uint8)
    with pytest.raises(ConfigError, match=f"has no dense CRF after mode '{kind}'"):
        predictor.predict_one(image, None, kind, crf=True)


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
    np.testing.assert_array_equal(label, predictor.predict_one(image, (0, 2), "walk").label)


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
            if output == "change":
                np.testing.assert_allclose(found[number], values, atol=0.01)  # a cell at a tie
            elif output == "label":
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
    with pytest.raises(
        ArtifactError, match=r"in fp16 gives the labels of float32 in 9.*`force` it"
    ):
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
    with pytest.raises(ArtifactError, match="is a bundle: choose another `out`, or `overwrite`"):
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
    label_in_bulk([photos], spec_of(exported), tmp_path / "here")
    for name, label in labels_in(tmp_path / "here").items():
        np.testing.assert_array_equal(label, labels_in(tmp_path / "out")[name])
