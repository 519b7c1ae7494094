"""`wsss data`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .output import print_json, progress, stdout

if TYPE_CHECKING:
    from ..training.data.inspect import Inspection

SHOWN = 5
"""Findings of a kind in the printed form; `--json` has all."""


def data(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="VOC devkit, COCO JSON, images with labels.csv or .json, or a folder per class.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell what an image set holds and what is wrong with it; opens every image and mask.

    What is wrong is printed, not an error: `wsss train` stops at the faults that matter to it.
    """
    from ..training.data.inspect import inspect

    with progress() as shown:
        inspection = inspect(folder, progress=shown)
    if as_json:
        print_json(inspection.to_json())
    else:
        _print_inspection(inspection)


def _print_inspection(inspection: "Inspection") -> None:
    from rich.table import Table

    stdout.print(inspection.root, soft_wrap=True)
    stdout.print(inspection.layout, soft_wrap=True)
    stdout.print(
        f"{inspection.images} images, {len(inspection.classes)} classes, {inspection.masks} masks "
        f"({inspection.instance_masks} with instances), {inspection.background_only} of background "
        f"only, {inspection.unlabelled} without labels",
        soft_wrap=True,
    )
    table = Table("images with", "", box=None)
    for name in ("all", *inspection.splits):
        table.add_column(name, justify="right", overflow="fold")
    for name, counts in inspection.class_images.items():
        mark = "few" if name in inspection.thin_classes else ""
        table.add_row(name, mark, *map(str, counts.values()))
    table.add_row("any", "", str(inspection.images), *map(str, inspection.splits.values()))
    stdout.print(table)
    if inspection.thin_classes:
        stdout.print(f"few: less than {inspection.thin_limit} images to train on")
    for kind, findings in inspection.by_kind().items():
        stdout.print(f"{kind}: {len(findings)}", soft_wrap=True)
        for finding in findings[:SHOWN]:
            stdout.print(f"  {finding.text}", soft_wrap=True)
        if len(findings) > SHOWN:
            stdout.print(f"  and {len(findings) - SHOWN} more, see --json")
    if not inspection.findings:
        stdout.print("nothing wrong found")
