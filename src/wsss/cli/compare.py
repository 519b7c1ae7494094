"""`wsss compare`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device
from .output import print_json, progress, stdout


def compare(
    recipes: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE...", help="Shipped recipes, TOML files, or run folders."),
    ],
    data: Annotated[Path, typer.Option(help="Folder of the image set.")],
    out: Annotated[Path, typer.Option(help="Folder for their runs; continued where it stopped.")],
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[BACKBONE=]FILE", help="Backbone weights; once for each backbone, or for all."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.KEY=VALUE",
            help="Change a value that all the recipes have.",
        ),
    ] = None,
    pictures: Annotated[
        int, typer.Option(min=0, max=100, help="Photographs of each sheet; 0: figures alone.")
    ] = 8,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run recipes on the same images and show what each of them measured, side by side.

    Stages that recipes have in common are done once. Folders of runs are taken as they are.
    """
    from ..training.compare import compare as run_comparison
    from ..training.compare import read_weights
    from ..training.data.readers import read_image_set
    from ..training.report.compare import write_compare_page

    images = read_image_set(data)
    with progress() as shown:
        comparison = run_comparison(
            recipes,
            images,
            out,
            weights=read_weights(weights or ()),
            overrides=set_ or (),
            device=device,
            progress=shown,
        )
        page = write_compare_page(comparison, out / "compare.html", pictures=pictures)
    if as_json:
        print_json(comparison.to_json() | {"report": str(page)})
        return
    for row in comparison.rows:
        published = "" if row.published is None else f"  published on VOC 2012: {row.published:.1f}"
        stdout.print(f"{row.recipe:<26} {row.stage:<10} mIoU {row.miou:5.1f} %{published}")
    stdout.print(f"report: {page}", soft_wrap=True)
