"""`wsss compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.report.text import format_seconds
from .options import Device
from .output import print_json, progress, stdout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..training.compare.compare import CompareRow


def compare(
    recipes: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE", help="Shipped recipes, TOML files, or run folders."),
    ],
    data: Annotated[Path, typer.Option(help="Folder of the image set.")],
    out: Annotated[Path, typer.Option(help="Folder for their runs; continued where it stopped.")],
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[BACKBONE=]FILE", help="Backbone weights; once for each backbone, or for all."
        ),
    ] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="Run whose finished stages are copied where they are the same; may be repeated.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.KEY=VALUE",
            help="Change a value that all the recipes have; runs stay as they are.",
        ),
    ] = None,
    pictures: Annotated[
        int, typer.Option(min=0, max=100, help="Photographs of each sheet; 0: figures alone.")
    ] = 8,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run recipes on the same images and show what each of them measured, side by side.

    Writes compare.csv (mIoU by stage and class, time, memory) and compare.html (the same with
    photographs) into --out. Stages that recipes have in common, or that a run has finished, are
    done once. Folders of runs are taken as they are; so a recipe that needs files of its own, such
    as CIAN with `wsss train --seeds`, is trained first and given as its run.
    """
    from ..training.compare.compare import compare as run_comparison
    from ..training.compare.compare import write_compare_table
    from ..training.compare.inputs import read_weights
    from ..training.compare.page import write_compare_page
    from ..training.data.readers import read_image_set

    images = read_image_set(data)
    with progress() as shown:
        comparison = run_comparison(
            recipes,
            images,
            out,
            weights=read_weights(weights or ()),
            overrides=set_ or (),
            reuse=reuse or (),
            device=device,
            progress=shown,
        )
        table = write_compare_table(comparison, out / "compare.csv")
        page = write_compare_page(comparison, out / "compare.html", pictures=pictures)
    if as_json:
        print_json(comparison.to_json() | {"table": str(table), "report": str(page)})
        return
    _print_rows(comparison.rows)
    stdout.print(f"table: {table}", soft_wrap=True)
    stdout.print(f"report: {page}", soft_wrap=True)


def _print_rows(rows: "Sequence[CompareRow]") -> None:
    """What was measured; classes and stages without mIoU stand in the files."""
    from rich.table import Table

    heads = ("recipe", "stage", "mIoU %", "published", "time", "MiB", "GPU MiB")
    table = Table(*heads, box=None)
    table.columns[0].overflow = "fold"
    for row in rows:
        published = "" if row.published is None else f"{row.published:.1f}"
        seconds = "" if row.seconds is None else format_seconds(row.seconds)
        memory = ("" if mib is None else str(mib) for mib in (row.host_mib, row.gpu_mib))
        table.add_row(row.recipe, row.stage, f"{row.miou:.1f}", published, seconds, *memory)
    stdout.print(table)
    if any(row.published is not None for row in rows):
        stdout.print("published: by the authors, on VOC 2012, of the same backbone", soft_wrap=True)
