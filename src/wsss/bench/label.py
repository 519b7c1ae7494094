"""`wsss bench label`: from an image on the disk to a label map on the disk, stage by stage."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import ArtifactError, WsssError
from ..export.bundle import write_graphs
from ..export.precision import LEAST_AGREEMENT, Precision, to_precision
from ..export.source import graphs_of, open_source
from ..runtime.backends.contract import Array, OpenGraph
from ..runtime.bundle.inputs import Layout, label_inputs
from ..runtime.bundle.open import is_bundle, open_bundle
from ..runtime.io.files import make_folder
from ..runtime.io.image_io import read_image, write_label_map
from ..runtime.io.progress import SILENT, Progress
from ..training.predict.run_predictor import RunPredictor
from .cam import bfloat16_note
from .cam_torch import PUBLISHED, TORCH
from .label_torch import Image, Labeller, Photo, calibration_images, label_photos, torch_labellers
from .machine import Machine, exact_float32, synchroniser
from .onnx_forms import FORMS, GRAPH, divided, opened, profile_graph
from .stages import (
    DISK,
    NETWORKS_AND_WALK,
    READ,
    WRITE,
    Form,
    StageClock,
    StageRow,
    Timing,
    stage_rows,
    time_forms,
)

MANY = 100_000
"""Images that the hours are projected to."""

Labels = list[Image | None]
_GRAPHS = {"walk": "label", "segmenter": "segmenter"}
"""Modes that are measured, and the graph that a run's export has of each."""


@dataclass(frozen=True)
class LabelRow:
    """One form of one way to label.

    Attributes:
        by: walk or segmenter, both without dense CRF.
        seconds_per_image: from file to file; `seconds_in_memory` without reading and writing.
        speedup: from file to file over the published form; None without it.
        outside_in_memory, outside_on_disk: share of the time that is spent outside of the networks
            and the walk with its affinities; None where the stages of a graph cannot be told.
        limited_by: the stage that takes longest.
        peak_share: operations of the networks' convolutions a second, in memory, in torch's float32
            matrix speed; see `CamRow`.
        hours_per_100k: 100 000 images one after the other at this speed.
        labels_equal: share of pixels labelled as by `RunPredictor`; None without one.
        is_extrapolated: affinities and walk were computed for a part of the grid and scaled.
    """

    by: str
    form: str
    device: str
    images: int
    seconds_per_image: float
    seconds_in_memory: float
    images_per_second: float
    speedup: float | None
    outside_in_memory: float | None
    outside_on_disk: float | None
    limited_by: str
    peak_share: float
    hours_per_100k: float
    labels_equal: float | None
    is_extrapolated: bool


@dataclass(frozen=True)
class LabelBench:
    """What was measured; see `CamBench`."""

    rows: list[LabelRow]
    stages: list[StageRow]
    notes: list[str]


_NOTES = (
    "without dense CRF; classes of the image set are given, the walk's graph looks for them anyway",
    "the segmenter has no published form",
)


def bench_label(
    model: Path,
    data: Path,
    machine: Machine,
    *,
    count: int,
    precisions: Sequence[Precision] = ("fp32",),
    rounds: int = 3,
    device: torch.device,
    progress: Progress = SILENT,
) -> LabelBench:
    """Every way to label that a model has, in every form, on the same photographs.

    Args:
        model: a run; or a bundle, whose graphs have nothing beside them to be compared with.
        data: image set with the classes of the model.
        count: photographs, spread over the set.
        precisions: of the run's exported graphs.

    Raises:
        ArtifactError: neither run nor bundle, one that cannot label, or one of other classes;
        WsssError: a float32 form labels otherwise.
    """
    if is_bundle(model):
        return _bench_bundle(model, data, machine, count, rounds, device, progress)
    predictor = RunPredictor(model, device.type)
    networks = graphs_of(predictor.method)
    ways = [way for way, graph in _GRAPHS.items() if all(map(predictor.has, networks[graph]))]
    if not ways:
        raise ArtifactError(
            f"run '{model}' has neither an affinity network nor a segmenter: finish `wsss train`"
        )
    photos = label_photos(data, predictor.classes, f"run '{model}'", count)
    result = LabelBench([], [], [*_NOTES, *bfloat16_note(device)])
    with exact_float32(device), tempfile.TemporaryDirectory() as folder:
        others = calibration_images(data, photos)
        files = _write_graphs(model, ways, others, precisions, Path(folder))
        for way in ways:
            expected = _expected(predictor, way, photos)
            labellers = torch_labellers(predictor, way, device)
            bench = _Bench(way, photos, len(predictor.classes), machine, rounds, device, progress)
            bench.measure(result, labellers, files[way], expected)
    return result


def _bench_bundle(
    folder: Path,
    data: Path,
    machine: Machine,
    count: int,
    rounds: int,
    device: torch.device,
    progress: Progress,
) -> LabelBench:
    bundle = open_bundle(folder)
    graphs = {mode: entry.graph for mode, entry in bundle.modes.items() if not entry.crf}
    ways = [mode for mode, graph in graphs.items() if graph in bundle.graphs]
    if not ways:
        raise ArtifactError(f"bundle '{folder}' has no graph that labels: export it with `label`")
    photos = label_photos(data, bundle.classes, f"bundle '{folder}'", count)
    result = LabelBench([], [], list(_NOTES))
    for way in ways:
        files = {FORMS[bundle.precision]: bundle.graph_path(graphs[way])}
        classes = len(bundle.classes)
        bench = _Bench(way, photos, classes, machine, rounds, device, progress, bundle.layout)
        bench.measure(result, {}, files, None)
    return result


@dataclass(frozen=True)
class _Bench:
    """One way to label, and what all of its forms share."""

    way: str
    photos: Sequence[Photo]
    num_classes: int
    machine: Machine
    rounds: int
    device: torch.device
    progress: Progress
    layout: Layout = "nhwc"

    def measure(
        self,
        result: LabelBench,
        labellers: Mapping[str, Labeller],
        files: Mapping[str, Path],
        expected: Sequence[Image] | None,
    ) -> None:
        """Append rows and stages of all forms."""
        equal: dict[str, float | None] = {}

        def check(name: str, labels: Labels) -> None:
            equal[name] = _equal(labels, expected)
            if expected is not None and name in (TORCH, FORMS["fp32"]):
                _require_equal(self.way, name, equal[name])

        threads = self.machine.threads
        with (
            tempfile.TemporaryDirectory() as out,
            opened(files, threads, self.device) as sessions,
        ):
            chosen = dict(labellers)
            chosen |= {name: self._graph_labeller(graph) for name, graph in sessions.items()}
            forms = {name: self._job(labeller, Path(out)) for name, labeller in chosen.items()}
            with self.progress.task(self.way, len(forms) * (self.rounds + 1)) as task:
                timings = time_forms(
                    forms,
                    rounds=self.rounds,
                    synchronise=synchroniser(self.device),
                    check=check,
                    advance=task.advance,
                )
        feeds = [self._inputs(read_image(photo.path), photo.labels) for photo in self.photos]
        profiles = {
            name: profile_graph(path, feeds, threads=threads) for name, path in files.items()
        }
        for name, profile in profiles.items():
            timings[name] = divided(timings[name], profile, self.device)
        # The networks are the same in every form.
        operations = next(iter(profiles.values())).operations
        timings = {name: timing.of_each(len(self.photos)) for name, timing in timings.items()}
        baseline = timings[PUBLISHED].seconds if PUBLISHED in timings else None
        for name, timing in timings.items():
            result.rows.append(self._row(name, timing, operations, baseline, equal[name]))
            result.stages.extend(stage_rows(self.way, name, timing))

    def _job(self, labeller: Labeller, out: Path) -> Form[Labels]:
        """What a labelling job does to each image."""

        def run(clock: StageClock) -> Labels:
            found: Labels = []
            for number, photo in enumerate(self.photos):
                with clock.stage(READ):
                    image = read_image(photo.path)
                label = labeller(image, photo.labels, clock)
                found.append(label)
                with clock.stage(WRITE):
                    blank = np.zeros(image.shape[:2], np.uint8)
                    write_label_map(out / f"{number}.png", blank if label is None else label)
            return found

        return run

    def _graph_labeller(self, graph: OpenGraph) -> Labeller:
        def label(image: Image, classes: tuple[int, ...] | None, clock: StageClock) -> Image:
            with clock.stage(GRAPH):
                found = graph.run(self._inputs(image, classes), ["label"])
                return np.asarray(found["label"][0], np.uint8)

        return label

    def _inputs(self, image: Image, classes: Sequence[int] | None) -> dict[str, Array]:
        takes = self.way == "walk"
        return label_inputs(
            image[None], [classes], self.num_classes, self.layout, takes_classes=takes
        )

    def _row(
        self,
        name: str,
        timing: Timing[Labels],
        operations: Mapping[str, float],
        baseline: float | None,
        equal: float | None,
    ) -> LabelRow:
        in_memory = timing.seconds - sum(timing.stages[stage] for stage in DISK)
        is_whole = GRAPH in timing.stages
        done = sum(n for stage, n in operations.items() if is_whole or stage in timing.stages)
        return LabelRow(
            self.way,
            name,
            self.machine.device,
            len(self.photos),
            timing.seconds,
            in_memory,
            1 / timing.seconds,
            baseline / timing.seconds if baseline else None,
            None if is_whole else 1 - timing.share(NETWORKS_AND_WALK, without=DISK),
            None if is_whole else 1 - timing.share(NETWORKS_AND_WALK),
            timing.slowest,
            done / in_memory / 1e9 / self.machine.gflops,
            timing.seconds * MANY / 3600,
            equal,
            any(label is None for label in timing.result),
        )


def _write_graphs(
    run: Path,
    ways: Sequence[str],
    calibration: Sequence[Image],
    precisions: Sequence[Precision],
    folder: Path,
) -> dict[str, dict[str, Path]]:
    """Files by way and form; int8 finds its ranges on images that are not measured."""
    source = open_source(run, tuple(_GRAPHS[way] for way in ways), "nhwc")
    files: dict[str, dict[str, Path]] = {way: {} for way in ways}
    for precision in precisions:
        networks = {
            stage: to_precision(network, precision, calibration, source.settings.align)
            for stage, network in source.networks.items()
        }
        make_folder(folder / precision)
        write_graphs(source, networks, folder / precision, precision)
        for way in ways:
            files[way][FORMS[precision]] = folder / precision / f"{_GRAPHS[way]}.onnx"
    return files


def _expected(predictor: RunPredictor, way: str, photos: Sequence[Photo]) -> list[Image]:
    """By the code that everybody uses."""
    return [
        predictor.predict_one(
            read_image(photo.path), None if way == "segmenter" else photo.labels, way, crf=False
        ).label
        for photo in photos
    ]


def _equal(labels: Labels, expected: Sequence[Image] | None) -> float | None:
    """Share of pixels over all photographs; None where there is nothing to compare."""
    kept = [label for label in labels if label is not None]
    if expected is None or len(kept) < len(expected):
        return None
    equal = sum(
        int(np.equal(found, wanted).sum()) for found, wanted in zip(kept, expected, strict=True)
    )
    return equal / sum(wanted.size for wanted in expected)


def _require_equal(way: str, name: str, equal: float | None) -> None:
    """No speed of a wrong result.

    Raises:
        WsssError: too many pixels are labelled otherwise.
    """
    least = LEAST_AGREEMENT["fp32"]
    if equal is None or equal < least:
        raise WsssError(
            f"form '{name}' of {way} is wrong here: {equal or 0:.4%} of the pixels are labelled as "
            f"by torch, expected at least {least:.1%}"
        )
