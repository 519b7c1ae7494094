"""A bundle of IRNet: its graphs, what they share, and the instances made of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from command_line import wsss
from job_specs import spec_of
from onnx import TensorProto, helper
from untrained_run import CLASSES, share_backbone, write_untrained_run

from wsss.errors import ArtifactError, ConfigError
from wsss.export.bundle import ExportSettings, export_run
from wsss.export.parity.parity import check_parity, drawn_cases
from wsss.export.source import open_source
from wsss.runtime.bundle.open import open_bundle
from wsss.runtime.bundle.predictor import BundlePredictor
from wsss.runtime.instances.files import read_ids
from wsss.runtime.instances.instance_map import InstanceMap
from wsss.runtime.io.image_io import read_image
from wsss.training.data.image_set import ImageSet, Sample
from wsss.training.demo.run import write_demo_scenes
from wsss.training.engine.checkpoint import load_checkpoint, save_checkpoint
from wsss.training.evaluation.instance_predictions import PairPredictions
from wsss.training.methods.irnet.network import DISPLACEMENT_CHANNELS, MIXED_CHANNELS
from wsss.training.predict.run_predictor import RunPredictor
from wsss.training.recipe.recipe import Recipe
from wsss.training.recipes import load_recipe

pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'wsss[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")

pytestmark = pytest.mark.usefixtures("networks_traced_once")

SHORT = (
    "walk.steps=8",
    "walk.radius=3",
    "walk.beta=2",
    "instances.steps=40",
    "cam.train.augmentation.crop_size=65",
    "cam.scales=[1.0]",
)

THRESHOLD = 0.2
"""Probability that the untrained classifier gives to some classes of each image, and not to all."""


def recipe_of(*overrides: str) -> Recipe:
    return load_recipe("demo_irnet", [*SHORT, *overrides])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_untrained_run(tmp_path_factory.mktemp("irnet") / "run", recipe_of())
    share_backbone(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Larger than those of other bundles, so that there are objects to part."""
    folder = tmp_path_factory.mktemp("scenes")
    write_demo_scenes(folder, train=2, val=1, seed=0)
    return next(folder.rglob("JPEGImages"))


def convolutions(bundle: Path) -> int:
    model = onnx.load(bundle / "label.onnx")
    return sum(node.op_type == "Conv" for node in model.graph.node)


def test_a_bundle_says_what_is_in_it(exported: Path) -> None:
    bundle = open_bundle(exported)
    assert bundle.method == "irnet"
    assert set(bundle.graphs) == {"cam", "irnet", "refine", "label", "segmenter"}
    assert [spec.name for spec in bundle.graphs["irnet"].outputs] == ["boundary", "displacement"]
    assert "boundary" in {spec.name for spec in bundle.graphs["refine"].inputs}
    assert bundle.settings["instances"]["steps"] == 40


def test_displacements_are_those_of_the_images_alone(exported: Path) -> None:
    """Boundaries come of the mirrors as well: everything else there works on twice the batch."""
    model = onnx.load(exported / "irnet.onnx")
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node if node.op_type == "Conv"}
    for name in made:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    image = np.random.default_rng(0).integers(0, 256, (3, 37, 53, 3), dtype=np.uint8)
    found = dict(zip(made, session.run(list(made), {"image": image}), strict=True))
    upright = [
        tuple(weights[made[name].input[1]]) for name, maps in found.items() if len(maps) == 3
    ]
    assert {len(maps) for maps in found.values()} == {3, 6}
    layers = [*DISPLACEMENT_CHANNELS, MIXED_CHANNELS, MIXED_CHANNELS, 2]
    assert sorted(shape[0] for shape in upright) == sorted(layers)
    assert all(shape[2:] == (1, 1) for shape in upright)


def test_only_displacements_may_be_off_by_many_cells_of_rounding(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    """They are counted in cells; boundaries are probabilities, bound as everything else."""
    source = open_source(run, ("irnet",), "nhwc")
    cases = drawn_cases(len(CLASSES))[:1]

    def shifted(output: str, by: float) -> None:
        model = onnx.load(exported / "irnet.onnx")
        (last,) = [node for node in model.graph.node if output in node.output]
        last.output[list(last.output).index(output)] = "shifted/from"
        model.graph.initializer.append(
            helper.make_tensor("shifted/by", TensorProto.FLOAT, [], [by])
        )
        model.graph.node.append(helper.make_node("Add", ["shifted/from", "shifted/by"], [output]))
        onnx.save(model, tmp_path / "irnet.onnx")

    shifted("displacement", 1e-3)
    found = check_parity(source, tmp_path, cases)["irnet"]
    assert found.max_error["displacement"] == pytest.approx(1e-3, rel=0.2)
    for output, by in (("boundary", 1e-3), ("displacement", 5e-3)):
        shifted(output, by)
        with pytest.raises(ArtifactError, match=f"`{output}` is .* off, allowed"):
            check_parity(source, tmp_path, cases)


def test_labels_need_no_displacements(exported: Path) -> None:
    def offsets(graph: str) -> list[onnx.TensorProto]:
        model = onnx.load(exported / f"{graph}.onnx")
        shape = [2, MIXED_CHANNELS, 1, 1]
        return [tensor for tensor in model.graph.initializer if list(tensor.dims) == shape]

    assert len(offsets("irnet")) == 1 and not offsets("label")


def test_equal_backbones_are_computed_once(run: Path, exported: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    path = other / "irnet" / "weights.safetensors"
    tensors, header = load_checkpoint(path)
    last = [key for key in tensors if key.startswith("backbone.") and tensors[key].ndim == 4][-1]
    tensors[last] = tensors[last] * 1.0001
    save_checkpoint(path, tensors, header)
    export_run(other, tmp_path / "apart", ExportSettings(names=("label",)))
    assert convolutions(exported) < convolutions(tmp_path / "apart")
    fresh = write_untrained_run(tmp_path / "fresh", recipe_of())
    export_run(fresh, tmp_path / "unlike", ExportSettings(names=("label",)))
    assert convolutions(tmp_path / "apart") < convolutions(tmp_path / "unlike")


def require_same(found: InstanceMap, expected: InstanceMap) -> None:
    """One instance beside the other: class, score, and all but a few pixels of rounding."""
    assert found.classes.tolist() == expected.classes.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    for number in range(1, len(expected) + 1):
        one, other = found.ids == number, expected.ids == number
        assert (one & other).sum() >= 0.98 * (one | other).sum()


@pytest.mark.parametrize("labels", [None, (0, 2)])
def test_bundle_and_run_find_the_same_instances(
    run: Path, exported: Path, photos: Path, labels: tuple[int, ...] | None
) -> None:
    thresholds = [THRESHOLD] * len(CLASSES)
    by_bundle = BundlePredictor(exported, thresholds=thresholds, instances=True)
    by_run = RunPredictor(run, "cpu")
    by_run.thresholds = THRESHOLD
    plain = BundlePredictor(exported, thresholds=thresholds)
    for path in sorted(photos.iterdir()):
        image = read_image(path)
        labelled = by_bundle.predict_one(image, labels)
        found = labelled.instances
        expected = by_run.instances(image, labels)
        assert found.ids.shape == image.shape[:2]
        assert (found.label_map() == expected.label_map()).mean() >= 0.999
        assert ((found.ids > 0) == (expected.ids > 0)).mean() >= 0.999
        assert len(expected) > 0
        require_same(found, expected)
        whole = plain.predict_one(image, labels, "walk")
        np.testing.assert_array_equal(labelled.label, whole.label)
        np.testing.assert_allclose(labelled.scores, whole.scores, atol=1e-5)


def test_jobs_of_instances(run: Path, exported: Path, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    rows = "".join(f"{path.name},{CLASSES[0]};{CLASSES[1]}\n" for path in photos.iterdir())
    table.write_text(f"file,labels\n{rows}")
    for model, out in ((exported, tmp_path / "by_bundle"), (run, tmp_path / "by_run")):
        wsss(
            "label", photos, "--model", model, "--out", out, "--labels", table, "--instances"
        ).succeeded()
        assert len(list((out / "SegmentationObject").iterdir())) == 3
        assert (out / "instances.json").is_file()
    files = [
        sorted(p.name for p in (tmp_path / way / "masks").iterdir())
        for way in ("by_bundle", "by_run")
    ]
    assert files[0] == files[1]
    images = ImageSet(
        photos, "photos", CLASSES, tuple(Sample(p.stem, p, None) for p in photos.iterdir())
    )
    jobs = [PairPredictions(tmp_path / way, images) for way in ("by_bundle", "by_run")]
    for sample in images.samples:
        found, expected = (job.predict(sample) for job in jobs)
        assert len(expected) > 0
        require_same(found, expected)


def test_huge_images_have_instances_across_tiles(
    run: Path, exported: Path, photos: Path, tmp_path: Path
) -> None:
    row = np.concatenate([read_image(path) for path in sorted(photos.iterdir())[:2]], axis=1)
    image = np.concatenate([row, row[:, ::-1]])
    limit = 1 << 16
    assert image.shape[0] * image.shape[1] > limit
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "huge.png"), image[..., ::-1])
    images = ImageSet(
        tmp_path / "images",
        "huge",
        CLASSES,
        (Sample("huge", tmp_path / "images" / "huge.png", None),),
    )
    told = []
    for model, out in ((exported, tmp_path / "by_bundle"), (run, tmp_path / "by_run")):
        options = ("--instances", "--tile-pixels", limit, "--threshold", THRESHOLD, "--json")
        arguments = ("label", tmp_path / "images", "--model", model, "--out", out, *options)
        summary = json.loads(wsss(*arguments).succeeded().out)
        assert (summary["labelled"], summary["failed"]) == (1, 0)
        told.append(PairPredictions(out, images).predict(images.samples[0]))
    found, expected = told
    assert len(found) > 0 and found.ids.shape == image.shape[:2]
    require_same(found, expected)


def test_images_of_a_batch_go_together_and_have_the_instances_they_have_alone(
    exported: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, maps_of = [], BundlePredictor._predict_maps

    def recorded(predictor: BundlePredictor, images: np.ndarray, labels: Any) -> Any:
        together.append(len(images))
        return maps_of(predictor, images, labels)

    monkeypatch.setattr(BundlePredictor, "_predict_maps", recorded)
    outs = []
    for batch in (1, 3):
        outs.append(tmp_path / f"{batch}")
        wsss(
            *("label", photos, "--model", exported, "--out", outs[-1], "--instances"),
            *("--threshold", THRESHOLD, "--batch", batch, "--workers", 0),
        ).succeeded()
    assert together == [1, 1, 1, 3]
    count = 0
    for path in sorted((outs[0] / "SegmentationObject").iterdir()):
        alone, found = (read_ids(out / "SegmentationObject" / path.name) for out in outs)
        np.testing.assert_array_equal(found.ids, alone.ids)
        np.testing.assert_array_equal(found.scores, alone.scores)
        count += int(alone.ids.max())
    assert count > 3


@pytest.mark.parametrize(
    ("name", "output", "cut"),
    [
        ("cam", "cam", np.s_[:, :-1]),
        ("irnet", "boundary", np.s_[:, :, 0]),
        ("irnet", "displacement", np.s_[:, :1]),
        ("irnet", "displacement", np.s_[..., :-1]),
        ("irnet", "displacement", np.s_[..., :0]),
    ],
)
def test_maps_of_another_shape_are_refused(
    name: str,
    output: str,
    cut: Any,
    exported: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor = BundlePredictor(exported, instances=True)
    graph = predictor.graph(name)
    whole = graph.run

    def run(inputs: Any) -> dict[str, np.ndarray]:
        found = dict(whole(inputs))
        return found | {output: found[output][cut]}

    monkeypatch.setattr(graph, "run", run)
    with pytest.raises(ArtifactError, match=r"gave CAMs .*displacements .*expected"):
        predictor.predict_one(read_image(next(photos.iterdir())), (0, 2))


def test_instances_need_displacements_and_the_walk(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="requires `mode` walk"):
        spec_of(exported, "segmenter", instances=True)
    flat = write_untrained_run(tmp_path / "flat", recipe_of("irnet.displacement=false"))
    export_run(flat, tmp_path / "bundle", ExportSettings())
    assert [spec.name for spec in open_bundle(tmp_path / "bundle").graphs["irnet"].outputs] == [
        "boundary"
    ]
    with pytest.raises(ConfigError, match="of method irnet tells no instances"):
        spec_of(tmp_path / "bundle", "walk", instances=True)
    with pytest.raises(ConfigError, match=r"irnet\.displacement = true"):
        RunPredictor(flat, "cpu").require_instances()
