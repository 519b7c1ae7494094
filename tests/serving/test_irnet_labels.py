"""An IRNet run, its bundle in onnxruntime and a real Triton give the same labels and instances."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from triton_server import triton_server
from untrained_run import CLASSES, share_backbone, write_untrained_run

from wsss.export.bundle import ExportSettings, export_run
from wsss.export.triton import RepositoryOptions, write_repository
from wsss.runtime.backends.triton.options import TritonOptions
from wsss.runtime.bundle.predictor import BundlePredictor
from wsss.runtime.instances.instance_map import InstanceMap
from wsss.runtime.io.image_io import read_image
from wsss.training.demo.scenes import draw_scene
from wsss.training.predict.run_predictor import RunPredictor
from wsss.training.recipes import load_recipe

pytestmark = pytest.mark.triton
pytest.importorskip("tritonclient.http", reason="needs tritonclient: pip install 'wsss[triton]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'wsss[export]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

Labels = tuple[int, ...] | None
LEAST_EQUAL = 0.999
NETWORKS = {
    "small": ("demo_irnet", "cam.scales=[1.0]"),
    "mobilenetv2": ("irnet_mobilenetv2", 'cam.align="reference"', "cam.scales=[1.0, 0.5]"),
}
"""Recipe and what it is changed by; both alignments are among them."""
SHORT = (
    "cam.train.augmentation.crop_size=65",
    "walk.steps=16",
    "walk.beta=4",
    "walk.threshold=0.35",
    "instances.steps=40",
)
BATCHES: tuple[tuple[tuple[int, int], tuple[Labels, ...]], ...] = (
    ((375, 500), ((0, 1, 2), (0, 2))),
    ((500, 333), (None,)),
    ((333, 500), ((1, 2),)),
    ((113, 75), ((0, 1), (), None)),
    ((75, 97), ((),)),
)
"""Sizes of images, and the classes in each: told, none, or left to the classifier."""
SHARED = Path(os.environ.get("WSSS_SHARED", Path(__file__).parents[3] / "shared"))
PHOTOS = SHARED / "data/voc_mini/VOC2012/JPEGImages"


@dataclass(frozen=True)
class Ways:
    """One set of networks, three times."""

    run: RunPredictor
    bundle: BundlePredictor
    served: dict[str, BundlePredictor]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name == "small" else pytest.mark.slow) for name in NETWORKS
    ],
)
def ways(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    triton_environment: object,
) -> Iterator[Ways]:
    """Random weights, in IRNet's backbone those of the classifier."""
    base, *overrides = NETWORKS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    run = write_untrained_run(folder / "run", load_recipe(base, [*SHORT, *overrides]))
    share_backbone(run)
    graphs = ("cam", "irnet", "refine", "label")
    bundle = export_run(run, folder / "bundle", ExportSettings(names=graphs)).bundle.folder
    repository = write_repository(bundle, folder / "models", RepositoryOptions(intra_op_threads=1))
    with triton_server(repository.folder) as server:
        url = f"grpc://{server.grpc}"
        served = {
            name: BundlePredictor(bundle, backend="triton", server=TritonOptions(url, name))
            for name in ("label", "label_ensemble")
        }
        here = BundlePredictor(bundle, backend="onnxruntime", threads=1, instances=True)
        with closing(here), closing(served["label"]), closing(served["label_ensemble"]):
            yield Ways(RunPredictor(run, "cpu"), here, served)


def batches() -> list[tuple[np.ndarray, tuple[Labels, ...]]]:
    """Drawn scenes."""
    generator = np.random.default_rng(0)
    return [
        (
            np.stack([draw_scene(generator, size, index).image for index in range(len(labels))]),
            labels,
        )
        for size, labels in BATCHES
    ]


def compare(ways: Ways, images: np.ndarray, labels: Sequence[Labels]) -> list[np.ndarray]:
    """The labels by torch, after those of the other ways were found to equal them."""
    by_torch = [
        ways.run.predict_one(image, classes, "walk").label
        for image, classes in zip(images, labels, strict=True)
    ]
    for name, predictor in {"in process": ways.bundle, **ways.served}.items():
        found = predictor.predict(list(images), labels, "walk")
        for number, (one, expected) in enumerate(zip(found, by_torch, strict=True)):
            equal = (one.label == expected).mean()
            assert equal >= LEAST_EQUAL, (name, images.shape, number, equal)
    return by_torch


def test_labels_are_equal_three_ways(ways: Ways) -> None:
    made = []
    for images, labels in batches():
        for label_map, classes in zip(compare(ways, images, labels), labels, strict=True):
            told = range(len(CLASSES)) if classes is None else classes
            assert set(np.unique(label_map)) <= {0, *(index + 1 for index in told)}
            if classes:
                made.append(label_map)
    require_varied(made)


def test_labels_of_photographs(ways: Ways) -> None:
    if not PHOTOS.is_dir():
        pytest.skip(f"no photographs in {PHOTOS}: set WSSS_SHARED to the folder with data/voc_mini")
    made = []
    for path in sorted(PHOTOS.iterdir())[:3]:
        image = read_image(path)
        assert min(image.shape[:2]) > 150
        made += compare(ways, image[None], [(0, 1, 2)])
    require_varied(made)


def require_varied(labels: Sequence[np.ndarray]) -> None:
    """Maps of one value would prove little: background and classes share the pixels."""
    pixels = np.concatenate([each.ravel() for each in labels])
    shares = np.bincount(pixels, minlength=len(CLASSES) + 1) / len(pixels)
    assert np.sort(shares)[-2] > 0.05 and (shares > 0).sum() >= 3, shares
    assert sum(len(np.unique(each)) > 1 for each in labels) > len(labels) / 2


def test_instances_are_equal_by_run_and_bundle(ways: Ways) -> None:
    counts = []
    for images, labels in batches():
        for image, classes in zip(images, labels, strict=True):
            expected = ways.run.instances(image, classes)
            by_run = ways.run.predict_one(image, classes, "walk").label
            found = ways.bundle.predict_one(image, classes, "walk")
            assert found.instances is not None
            assert matched(found.instances, expected) >= LEAST_EQUAL
            assert (found.label == by_run).mean() >= LEAST_EQUAL
            counts.append(len(expected))
    assert max(counts) > 2 and sum(counts) > 5


def matched(found: InstanceMap, expected: InstanceMap) -> float:
    """Share of the pixels that lie in instances that are each other's counterpart, or in none."""
    pairs = np.stack([found.ids.ravel(), expected.ids.ravel()], 1)
    kinds, counts = np.unique(pairs, axis=0, return_counts=True)
    counterpart: dict[int, int] = {0: 0}
    taken, equal = {0}, 0
    for place in np.argsort(-counts):
        one, other = kinds[place].tolist()
        if one not in counterpart and other not in taken:
            if found.classes[one - 1] != expected.classes[other - 1]:
                continue
            counterpart[one] = other
            taken.add(other)
        if counterpart.get(one) == other:
            equal += int(counts[place])
    return equal / len(pairs)
