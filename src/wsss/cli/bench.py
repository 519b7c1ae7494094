"""`wsss bench`: speed as a ratio against the published form, in the same process."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import ConfigError
from .exit_codes import Command, termination_as_interrupt
from .options import Device, refuse_shared_memory
from .output import print_json, progress, stdout

if TYPE_CHECKING:
    from ..bench.crf import CrfRow
    from ..bench.machine import Machine
    from ..bench.walk import AffinityRow, WalkRow
    from ..export.precision import Precision

app = typer.Typer(help="Measure a part against its published form.", no_args_is_help=True)

Model = Annotated[
    Path | None,
    typer.Option(help="Run whose networks give real affinities and CAMs; default: drawn ones."),
]
Data = Annotated[Path | None, typer.Option(help="Image set for --model.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads, of all forms alike.")]
Precisions = Annotated[
    str | None,
    typer.Option(help="Of the networks in onnxruntime, with commas: fp32 (default), fp16, int8."),
]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer cases, one minute.")]
Size = Annotated[
    tuple[int, int] | None,
    typer.Option(
        metavar="HEIGHT WIDTH",
        help="Of the photographs; default: the commonest of --data, or 375 500.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class _Bench(Command):
    interrupted = "interrupted, nothing was measured to the end"


@app.command(cls=_Bench)
def walk(
    model: Model = None,
    data: Data = None,
    affinity: Annotated[
        Literal["photo", "model"] | None,
        typer.Option(help="photo: of drawn photographs; model: of --model, its default."),
    ] = None,
    threads: Threads = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds; medians count.")] = 5,
    quick: Quick = False,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Random walk and affinities against dense squaring and the published indexing.

    At stride 4 dense squaring runs on a smaller grid and is scaled by N^3, as the table says.
    """
    import torch

    from ..bench.cases import walk_cases
    from ..bench.machine import measure_machine
    from ..bench.walk import BATCHES, STRIDES, bench_affinity, bench_walk
    from ..runtime.refine.pseudo_labels import WalkSettings
    from ..training.engine.networks import choose_device

    if affinity is not None and (affinity == "model") != (model is not None):
        raise ConfigError("--affinity model goes with --model and --data, --affinity photo without")
    torch.set_num_threads(threads)
    place = choose_device(device)
    strides, batches = (STRIDES[:1], BATCHES[:2]) if quick else (STRIDES, BATCHES)
    cases = walk_cases(model, data, strides=strides, count=2 if quick else 8)
    machine = measure_machine(place)
    settings = WalkSettings()
    walks: list[WalkRow] = []
    affinities: list[AffinityRow] = []
    with progress() as shown, shown.task("walk", len(cases)) as task:
        for case in cases:
            walks += bench_walk(
                case, settings, machine, batches=batches, rounds=rounds, device=place
            )
            affinities += bench_affinity(case, settings) if place.type == "cpu" else []
            task.advance()
    _show(machine, _source(model), {"rows": walks, "affinity": affinities}, as_json)


@app.command(cls=_Bench)
def crf(
    model: Model = None,
    data: Data = None,
    threads: Threads = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds; medians count.")] = 3,
    quick: Quick = False,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Dense CRF, two passes an image, against pydensecrf2 where that is installed."""
    import torch

    from ..bench.cases import crf_cases
    from ..bench.crf import PUBLISHED, bench_crf
    from ..bench.machine import measure_machine
    from ..training.engine.networks import choose_device

    torch.set_num_threads(threads)
    place = choose_device(device)
    cases = crf_cases(model, data, num_classes=(2,) if quick else (1, 2, 3))
    names = list(PUBLISHED)[:1] if quick else list(PUBLISHED)
    machine = measure_machine(place)
    rows: list[CrfRow] = []
    with progress() as shown, shown.task("crf", len(cases)) as task:
        for case in cases:
            rows += bench_crf(case, names, rounds=rounds, device=place)
            task.advance()
    _show(machine, _source(model), {"rows": rows}, as_json)


@app.command(cls=_Bench)
def cam(
    model: Annotated[
        Path | None,
        typer.Option(help="Run; default: random weights, which are as fast."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Image set of photographs; default: drawn ones.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Architecture without --model; default: resnet50.")
    ] = None,
    size: Size = None,
    count: Annotated[int, typer.Option(min=1, help="Photographs; the batch of one form.")] = 2,
    precision: Precisions = None,
    threads: Threads = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds; medians count.")] = 3,
    quick: Quick = False,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """CAMs by the published modules, by torch, as a batch, in bfloat16 and by onnxruntime.

    --quick takes one round, and drawn photographs of half the size.
    """
    import torch

    from ..bench.cam import bench_cam
    from ..bench.cam_torch import calibration_photos, cam_case, same_size_photos
    from ..bench.cases import SIZE
    from ..bench.machine import measure_machine
    from ..training.engine.networks import choose_device

    precisions = _precisions(precision)
    torch.set_num_threads(threads)
    place = choose_device(device)
    if quick:
        rounds = 1
        if data is None and size is None:
            size = (SIZE[0] // 2, SIZE[1] // 2)
    if model is not None and backbone is not None:
        raise ConfigError("--backbone is for random weights: leave it out, or --model")
    photos, described = same_size_photos(data, size, count)
    case = cam_case(
        model, backbone or "resnet50", photos, described, calibration_photos(data, count)
    )
    machine = measure_machine(place)
    with progress() as shown:
        result = bench_cam(
            case, machine, precisions=precisions, rounds=rounds, device=place, progress=shown
        )
    tables: dict[str, list[Any]] = {"rows": result.rows, "stages": result.stages}
    _show(machine, case.source, tables, as_json, result.notes)


@app.command(cls=_Bench)
def label(
    model: Annotated[Path, typer.Option(help="Run, or bundle, whose ways to label are measured.")],
    data: Annotated[Path, typer.Option(help="Image set that it was trained on, or one like it.")],
    count: Annotated[int, typer.Option(min=1, help="Photographs, spread over the set.")] = 4,
    precision: Precisions = None,
    threads: Threads = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds; medians count.")] = 3,
    quick: Quick = False,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Image to label from disk to disk: every stage, in every form, and what limits the speed.

    --quick takes one round of two photographs.
    """
    import torch

    from ..bench.label import bench_label
    from ..bench.machine import measure_machine
    from ..runtime.bundle.open import is_bundle
    from ..training.engine.networks import choose_device

    if precision is not None and is_bundle(model):
        raise ConfigError(f"--precision is for runs: bundle '{model}' has the one of its export")
    precisions = _precisions(precision)
    torch.set_num_threads(threads)
    place = choose_device(device)
    if quick:
        rounds, count = 1, min(count, 2)
    machine = measure_machine(place)
    with progress() as shown:
        result = bench_label(
            model,
            data,
            machine,
            count=count,
            precisions=precisions,
            rounds=rounds,
            device=place,
            progress=shown,
        )
    tables: dict[str, list[Any]] = {"rows": result.rows, "stages": result.stages}
    _show(machine, f"model {model}, photographs of {data}", tables, as_json, result.notes)


@app.command(cls=_Bench)
def serve(
    model: Annotated[Path, typer.Option(help="Bundle, which the server serves.")],
    url: Annotated[
        list[str] | None,
        typer.Option(help="Running server, http:// or grpc://, repeatable; default: one of ours."),
    ] = None,
    environment: Annotated[
        Path | None, typer.Option(help="Of the server without --url: see `wsss serve`.")
    ] = None,
    server_model: Annotated[
        str, typer.Option(help="label, segmenter, or label_ensemble.")
    ] = "label",
    data: Annotated[
        Path | None, typer.Option(help="Image set of photographs; default: drawn ones.")
    ] = None,
    size: Size = None,
    count: Annotated[int, typer.Option(min=1, help="Different photographs.")] = 8,
    concurrency: Annotated[
        str, typer.Option(help="Requests under way at once, with commas.")
    ] = "1,2,4,8",
    requests: Annotated[int, typer.Option(min=1, help="Of each row.")] = 40,
    threads: Annotated[
        int, typer.Option(min=1, help="Of each session of a server of ours, and in process.")
    ] = 1,
    instances: Annotated[
        int,
        typer.Option(
            min=1, help="Sessions of a model on a server of ours; in process: one with all threads."
        ),
    ] = 1,
    max_batch_size: Annotated[
        int, typer.Option(min=1, help="Images that a server of ours joins.")
    ] = 8,
    shared_memory: Annotated[bool, typer.Option("--shared-memory", hidden=True)] = False,
    as_json: AsJson = False,
) -> None:
    """Load on a Triton server, against onnxruntime in this process.

    Without --url both have as many threads; what a server of --url computes with is not known here.
    """
    import torch

    from ..bench.cam_torch import same_size_photos
    from ..bench.machine import measure_machine
    from ..bench.serve import bench_serve
    from ..export.triton import RepositoryOptions, write_repository
    from ..runtime.backends.triton.options import TritonOptions
    from ..runtime.bundle.open import open_bundle
    from ..runtime.serving.installation import find_installation
    from ..runtime.serving.local_server import LocalServer

    refuse_shared_memory(shared_memory)
    torch.set_num_threads(threads * instances)
    bundle = open_bundle(model)
    steps = _numbers("--concurrency", concurrency)
    photos, described = same_size_photos(data, size, count)
    machine = measure_machine(torch.device("cpu"))
    notes = None
    if url:
        notes = [
            f"in process: {threads * instances} threads of this machine; the servers' are not known"
        ]
    with ExitStack() as stack:
        stack.enter_context(termination_as_interrupt())
        if not url:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            settings = RepositoryOptions(
                intra_op_threads=threads, instances=instances, max_batch_size=max_batch_size
            )
            repository = write_repository(model, Path(folder, "models"), settings).folder
            server = LocalServer(find_installation(environment), repository)
            stack.enter_context(closing(server)).start()
            url = [f"http://{server.http}", f"grpc://{server.grpc}"]
        shown = stack.enter_context(progress())
        rows = bench_serve(
            bundle,
            "segmenter" if server_model == "segmenter" else "label",
            [TritonOptions(each, model=server_model) for each in url],
            list(photos),
            concurrencies=steps,
            requests=requests,
            threads=threads * instances,
            progress=shown,
        )
    _show(machine, f"bundle {model}, {described}", {"rows": rows}, as_json, notes)


def _numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) >= 1 for part in parts):
        raise ConfigError(f"{option} is '{text}', expected numbers from 1 with commas")
    return [int(part) for part in parts]


def _precisions(names: str | None) -> "list[Precision]":
    from ..export.precision import require_precision

    return [require_precision(name.strip()) for name in dict.fromkeys((names or "fp32").split(","))]


def _source(model: Path | None) -> str:
    return f"run {model}, features resized to the grid" if model else "drawn photographs"


def _show(
    machine: "Machine",
    source: str,
    tables: Mapping[str, Sequence[Any]],
    as_json: bool,
    notes: Sequence[str] | None = None,
) -> None:
    if as_json:
        listed = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
        told = {"notes": list(notes)} if notes is not None else {}
        print_json({"machine": asdict(machine), "source": source, **listed, **told})
        return
    bfloat16 = machine.gflops_bfloat16
    stdout.print(
        f"{machine.processor}, {machine.cores} cores, load {machine.load}; {machine.threads} "
        f"threads; torch {machine.torch}, onnxruntime {machine.onnxruntime or 'not installed'}; "
        f"{machine.gflops} GFLOP/s float32, "
        f"{f'{bfloat16} bfloat16' if bfloat16 else 'no bfloat16 on this device'}, "
        f"{machine.gigabytes_per_second} GB/s; {source}",
        soft_wrap=True,
    )
    for rows in tables.values():
        if rows:
            stdout.print(_table([asdict(row) for row in rows]), soft_wrap=True)
    for note in notes or ():
        stdout.print(f"note: {note}", soft_wrap=True)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns aligned by spaces, never cut: wide rows belong into a file or a wide window."""
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return " x ".join(map(str, value))
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
