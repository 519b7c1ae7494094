"""`wsss demo`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Method
from .output import print_json, progress, stdout


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the images, the run and its report.")],
    method: Annotated[
        Method,
        typer.Option(
            help="irnet finds single objects too, in scenes where they touch; cian has no walk."
        ),
    ] = "affinitynet",
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
    from ..training.demo import run_demo

    with progress() as shown:
        result = run_demo(
            out, method=method, seed=seed, device=device, overwrite=overwrite, progress=shown
        )
    if as_json:
        print_json(result.to_json())
        return
    stdout.print(f"CAM, training images           mIoU {result.cam_miou:5.1f} %")
    if result.walk_miou is not None:
        stdout.print(f"CAM + walk                     mIoU {result.walk_miou:5.1f} %")
    if result.first_round_miou is not None:
        stdout.print(f"first round, validation images mIoU {result.first_round_miou:5.1f} %")
    stdout.print(f"pseudo labels                  mIoU {result.label_miou:5.1f} %")
    stdout.print(f"segmenter, validation images   mIoU {result.segmenter_miou:5.1f} %")
    for name, ap50 in (
        ("instances, training images    ", result.instance_ap50),
        ("of walked CAMs alone          ", result.boundary_instance_ap50),
        ("of CAMs alone                 ", result.cam_instance_ap50),
    ):
        if ap50 is not None:
            stdout.print(f"{name} AP50 {ap50:5.1f} %")
    stdout.print(f"images: {result.data}", soft_wrap=True)
    stdout.print(f"run:    {result.run}", soft_wrap=True)
    stdout.print(f"report: {result.report}", soft_wrap=True)
