"""`wsss bench cam`: every way to compute CAMs against the published one, in the same process."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import WsssError
from ..export.graphs.models import cam_model
from ..export.graphs.subgraph import keep_outputs
from ..export.graphs.trace import network_graph
from ..export.precision import Precision, to_precision
from ..export.source import graph_settings
from ..runtime.backends.contract import OpenGraph
from ..runtime.io.files import atomic_write_bytes
from ..runtime.io.progress import SILENT, Progress
from .cam_torch import (
    BATCHED,
    BFLOAT16,
    PUBLISHED,
    TORCH,
    CamCase,
    CamForm,
    Cams,
    cam_operations,
    compare,
    published_network_error,
    references,
    torch_forms,
)
from .machine import Machine, exact_float32, has_bfloat16, synchroniser
from .onnx_forms import FORMS, GRAPH, divided, opened, profile_graph
from .stages import StageClock, StageRow, Timing, stage_rows, time_forms

TOLERANCE = 1e-3
"""Largest error of a float32 form, in units of the strongest activation."""
FLOAT32 = (TORCH, BATCHED, FORMS["fp32"])


@dataclass(frozen=True)
class CamRow:
    """One form.

    Attributes:
        batch: photographs computed at once.
        speedup: over the published form.
        gflop: 10^9 operations of the network's convolutions for one photograph.
        gflops: of those, a second of the whole form.
        peak_share: of torch's float32 matrix speed, measured in the same run; kernels that are
            better than torch's exceed 1.
        bfloat16_peak_share: of the bfloat16 one, for a form that computes in it.
        max_error: of the maps against torch in float32, in units of the strongest activation; the
            published form resizes by another rule.
        labels_equal: share of cells whose strongest class is the same.
    """

    form: str
    size: tuple[int, int]
    batch: int
    device: str
    seconds_per_image: float
    images_per_second: float
    speedup: float
    gflop: float
    gflops: float
    peak_share: float
    bfloat16_peak_share: float | None
    max_error: float
    labels_equal: float


@dataclass(frozen=True)
class CamBench:
    """What was measured.

    Attributes:
        stages: where each form's time goes.
        notes: what a reader of the rows must know besides.
    """

    rows: list[CamRow]
    stages: list[StageRow]
    notes: list[str]


def bench_cam(
    case: CamCase,
    machine: Machine,
    *,
    precisions: Sequence[Precision] = ("fp32",),
    rounds: int = 3,
    device: torch.device,
    progress: Progress = SILENT,
) -> CamBench:
    """Time every form on the same photographs.

    Args:
        precisions: of the exported graph in onnxruntime.

    Raises:
        WsssError: a float32 form, or the baseline's network, gives other maps than torch.
    """
    figures: dict[str, tuple[float, float]] = {}
    with exact_float32(device), tempfile.TemporaryDirectory() as folder:
        _require_close(f"{PUBLISHED}: network", published_network_error(case, device))
        files = _write_graphs(case, precisions, Path(folder))
        expected = references(case, device)

        def check(name: str, cams: Cams) -> None:
            figures[name] = compare(cams, expected, case.recipe.cam.threshold)
            if name in FLOAT32:
                _require_close(name, figures[name][0])

        with opened(files, machine.threads, device) as sessions:
            forms = torch_forms(case, device)
            forms |= {name: _graph_form(graph, case.photos) for name, graph in sessions.items()}
            with progress.task("cam", len(forms) * (rounds + 1)) as task:
                timings = time_forms(
                    forms,
                    rounds=rounds,
                    synchronise=synchroniser(device),
                    check=check,
                    advance=task.advance,
                )
        for name, path in files.items():
            profile = profile_graph(path, [{"image": case.photos[:1]}], threads=machine.threads)
            timings[name] = divided(timings[name], profile, device)
    count = len(case.photos)
    timings = {name: timing.of_each(count) for name, timing in timings.items()}
    operations = cam_operations(case.network, case.size, case.recipe.cam)
    rows = [
        _row(
            name,
            timing,
            machine,
            case.size,
            operations,
            batch=count if name == BATCHED else 1,
            baseline=timings[PUBLISHED].seconds,
            figures=figures[name],
        )
        for name, timing in timings.items()
    ]
    listed = [row for name, timing in timings.items() for row in stage_rows("cam", name, timing)]
    return CamBench(rows, listed, bfloat16_note(device))


def _write_graphs(case: CamCase, precisions: Sequence[Precision], folder: Path) -> dict[str, Path]:
    """The exported graph `cam` without its second output, by form."""
    section = case.recipe.cam
    network = network_graph("cam", case.network)
    settings = graph_settings(case.recipe, case.network.num_classes, "nhwc")
    files = {}
    for precision in precisions:
        lowered = to_precision(network, precision, case.calibration, section.align)
        path = folder / f"{precision}.onnx"
        model = cam_model(lowered, settings)
        # Without the pass over the square image that finds classes: no other form does it.
        keep_outputs(model, ["cam"])
        atomic_write_bytes(path, model.SerializeToString())
        files[FORMS[precision]] = path
    return files


def _graph_form(graph: OpenGraph, photos: NDArray[np.uint8]) -> CamForm:
    """One photograph after the other, through all outputs of the graph."""
    names = [output.name for output in graph.describe().outputs]

    def run(clock: StageClock) -> Cams:
        found = []
        for image in photos:
            with clock.stage(GRAPH):
                found.append(graph.run({"image": image[None]}, names)["cam"][0])
        return np.stack(found)

    return run


def _require_close(name: str, error: float) -> None:
    """No speed of a wrong result.

    Raises:
        WsssError: beyond the tolerance.
    """
    if not error <= TOLERANCE:  # NaN fails too
        raise WsssError(
            f"form '{name}' is wrong here: largest error {error:g} of the strongest activation, "
            f"expected at most {TOLERANCE:g}"
        )


def bfloat16_note(device: torch.device) -> list[str]:
    """What to say where the form in bfloat16 is left out."""
    return [] if has_bfloat16(device) else [f"{BFLOAT16}: not on this {device.type.upper()}"]


def _row(
    name: str,
    timing: Timing[Cams],
    machine: Machine,
    size: tuple[int, int],
    operations: float,
    *,
    batch: int,
    baseline: float,
    figures: tuple[float, float],
) -> CamRow:
    speed = operations / timing.seconds / 1e9
    bfloat16 = machine.gflops_bfloat16 if name == BFLOAT16 else None
    return CamRow(
        name,
        size,
        batch,
        machine.device,
        timing.seconds,
        1 / timing.seconds,
        baseline / timing.seconds,
        operations / 1e9,
        speed,
        speed / machine.gflops,
        speed / bfloat16 if bfloat16 else None,
        *figures,
    )
