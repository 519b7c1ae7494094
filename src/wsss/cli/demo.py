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
            help="irnet finds single objects too, in scenes where they touch; selfguided is a "
            "design after its paper's abstract."
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
    from ..training.demo.run import run_demo

    with progress() as shown:
        result = run_demo(
            out, method=method, seed=seed, device=device, overwrite=overwrite, progress=shown
        )
    if as_json:
        print_json(result.to_json())
        return
    steps = result.step_mious or ()
    for name, miou in (
        ("CAM, training images", result.cam_miou),
        ("what seeds decide", result.seed_miou),
        ("CAM + walk", result.walk_miou),
        *((f"step {n}, at its best threshold", miou) for n, miou in enumerate(steps, 1)),
        ("first round, validation images", result.first_round_miou),
        ("pseudo labels", result.label_miou),
        ("segmenter, validation images", result.segmenter_miou),
    ):
        if miou is not None:
            stdout.print(f"{name:30} mIoU {miou:5.1f} %")
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
