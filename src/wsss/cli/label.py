"""`wsss label`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Device
from .output import print_json, progress, stdout


def label(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES",
            help="Images, and folders searched in depth; --out itself is left out of the search.",
        ),
    ],
    model: Annotated[Path, typer.Option(help="Run that `wsss train` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for palette PNGs, mirroring the inputs.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV or JSON with the image-level labels of every image."),
    ] = None,
    by: Annotated[
        Literal["segmenter", "labels", "walk", "cam"] | None,
        typer.Option(
            help="segmenter, labels (walk and CRF), walk or cam; default: labels where --labels is "
            "given, else segmenter."
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = "auto",
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Write again what is there, remove what another job wrote."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Label images by a run's networks, with or without given image-level labels.

    Finished images are kept: the same command continues an interrupted job.
    """
    from ..training.label import label_by_run

    with progress() as shown:
        summary = label_by_run(
            images,
            model,
            out,
            labels_path=labels,
            kind=by,
            device=device,
            overwrite=overwrite,
            progress=shown,
        )
    if as_json:
        print_json(summary.to_json())
    else:
        stdout.print(
            f"{summary.labelled} labelled, {summary.kept} kept, {summary.failed} failed: "
            f"{summary.out}",
            soft_wrap=True,
        )
    if summary.failed:
        sys.exit(3)
