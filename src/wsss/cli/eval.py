"""`wsss eval`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import Device
from .output import print_json, progress, stdout

if TYPE_CHECKING:
    from ..training.evaluation import EvalReport


def evaluate_command(
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS",
            help="A run, or a folder of NAME.png labels or NAME.npz score maps.",
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder of the image set, with masks.")],
    split: Annotated[
        str | None, typer.Option(help="List to measure on; default: val for a run, else all.")
    ] = None,
    stage: Annotated[
        Literal["segmenter", "cam", "walk", "labels"],
        typer.Option(
            help="Of a run: segmenter (no image labels), cam, walk, or labels (walk and CRF)."
        ),
    ] = "segmenter",
    image_labels: Annotated[
        bool,
        typer.Option(
            help="Give the image-level labels to cam, walk and labels, or let the classifier find "
            "the classes."
        ),
    ] = True,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Background constant; default: the recipe's, else 0.2."),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Measure thresholds 0.05..0.95, report the best.")
    ] = False,
    align: Annotated[
        Literal["reference", "corners"] | None,
        typer.Option(
            help="How score maps lie on pixels: reference or corners (of a run's recipe)."
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a run's networks, stored CAMs or label maps by mIoU, and say how it was measured."""
    from ..training.data.readers import read_image_set
    from ..training.measure import measure

    images = read_image_set(data)
    with progress() as shown:
        report = measure(
            predictions,
            images,
            split=split,
            stage=stage,
            use_image_labels=image_labels,
            threshold=threshold,
            sweep=sweep,
            align=align,
            device=device,
            progress=shown,
        )
    if as_json:
        print_json(report.to_json())
    else:
        _print_report(report)


def _print_report(report: "EvalReport") -> None:
    from rich.table import Table

    labels = {True: "used", False: "not used", None: "unknown"}[report.image_labels_used]
    stdout.print(f"{report.predictions}", soft_wrap=True)
    stdout.print(
        f"list {report.list_name}: {report.images} images, image labels {labels}, background: "
        f"{report.background}",
        soft_wrap=True,
    )
    table = Table("class", "IoU %", box=None)
    table.columns[0].overflow = "fold"
    for name, value in report.iou.items():
        table.add_row(name, "-" if value != value else f"{value:.1f}")
    stdout.print(table)
    stdout.print(f"mIoU {report.miou:.2f} %")
    for source, figures in report.sources.items():
        stdout.print(f"  {source}: {figures['miou']:.2f} % ({figures['images']:.0f} images)")
    for row in report.sweep:
        stdout.print("  ".join(f"{key} {value:.2f}" for key, value in row.items()))
