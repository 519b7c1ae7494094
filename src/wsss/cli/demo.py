"""`wsss demo`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device
from .output import print_json, progress, stdout


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the images, the run and its report.")],
    method: Annotated[
        str | None, typer.Option(help="Name of the method to train; an unknown name lists them.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the scenes and the training.")] = 0,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove another demo run from --out first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Draw a small image set, train a whole method on it from scratch, and report.

    Takes a few minutes on two CPU cores; ends with figures and a page to look at.
    """
    from ..training.demo.run import run_demo
    from ..training.methods import METHODS

    with progress() as shown:
        result = run_demo(
            out,
            method=method or METHODS[0],
            seed=seed,
            device=device,
            overwrite=overwrite,
            progress=shown,
        )
    if as_json:
        print_json(result.to_json())
        return
    for figure, value in result.figures.items():
        values = value if isinstance(value, tuple) else (value,)
        text = ", ".join(f"{each:5.1f}" for each in values)
        unit = "AP50" if figure.key.endswith("ap50") else "mIoU"
        stdout.print(f"{figure.text:32} {unit} {text} %")
    stdout.print(f"images: {result.data}", soft_wrap=True)
    stdout.print(f"run:    {result.run}", soft_wrap=True)
    stdout.print(f"report: {result.report}", soft_wrap=True)
