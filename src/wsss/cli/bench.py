"""`wsss bench`: speed as a ratio against the published form, in the same process."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import ConfigError
from .exit_codes import exit_codes
from .options import Device
from .output import print_json, progress, stdout

if TYPE_CHECKING:
    from ..runtime.bench.crf import CrfRow
    from ..runtime.bench.machine import Machine
    from ..runtime.bench.walk import AffinityRow, WalkRow

app = typer.Typer(help="Measure a part against its published form.", no_args_is_help=True)

Model = Annotated[
    Path | None,
    typer.Option(help="Run whose networks give real affinities and CAMs; default: drawn ones."),
]
Data = Annotated[Path | None, typer.Option(help="Image set for --model.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads, of all forms alike.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer cases, one minute.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
@exit_codes()
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

    from ..runtime.bench.machine import measure_machine
    from ..runtime.bench.walk import BATCHES, STRIDES, WalkSettings, bench_affinity, bench_walk
    from ..training.bench_cases import walk_cases
    from ..training.devices import choose_device

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
    _show(machine, model, {"rows": walks, "affinity": affinities}, as_json)


@app.command()
@exit_codes()
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

    from ..runtime.bench.crf import PUBLISHED, bench_crf
    from ..runtime.bench.machine import measure_machine
    from ..training.bench_cases import crf_cases
    from ..training.devices import choose_device

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
    _show(machine, model, {"rows": rows}, as_json)


def _show(
    machine: "Machine", model: Path | None, tables: Mapping[str, Sequence[Any]], as_json: bool
) -> None:
    source = f"run {model}, features resized to the grid" if model else "drawn photographs"
    if as_json:
        listed = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
        print_json({"machine": asdict(machine), "source": source, **listed})
        return
    stdout.print(
        f"{machine.processor}, {machine.cores} cores, load {machine.load}; {machine.threads} "
        f"threads; torch {machine.torch}; {machine.gflops} GFLOP/s float32, "
        f"{machine.gigabytes_per_second} GB/s; {source}",
        soft_wrap=True,
    )
    for rows in tables.values():
        if rows:
            stdout.print(_table([asdict(row) for row in rows]), soft_wrap=True)


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
