"""`wsss eval`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import ArtifactError, ConfigError
from .options import Device, one_mode
from .output import print_json, progress, stdout

if TYPE_CHECKING:
    from ..training.data.image_set import ImageSet
    from ..training.evaluation.coverage import CoverageReport
    from ..training.evaluation.instances import InstanceReport
    from ..training.evaluation.miou import EvalReport
    from ..training.predict.calibration import Calibration

RUN, BACKGROUND = "Networks of a run", "Background of score maps"
THRESHOLDS = "Thresholds for wsss label"


def evaluate_command(
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS",
            help="A run, a job of `wsss label`, or a folder of NAME.png labels or NAME.npz score "
            "maps; with --instances a run, a job, VOC's pair of folders, or a COCO JSON file.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(help="Folder of the image set, with masks; --calibrate needs labels alone."),
    ],
    split: Annotated[
        str | None, typer.Option(help="List to measure on; default: val for a run, else all.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="segmenter (no image labels; the default), cam, walk, or labels (walk and dense "
            "CRF).",
            rich_help_panel=RUN,
        ),
    ] = None,
    stage: Annotated[str | None, typer.Option(hidden=True)] = None,
    image_labels: Annotated[
        bool,
        typer.Option(
            help="Give the image-level labels to cam, walk, labels and instances, or let the "
            "classifier find the classes.",
            rich_help_panel=RUN,
        ),
    ] = True,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Background constant; default: the recipe's, else 0.2.",
            rich_help_panel=BACKGROUND,
        ),
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="Measure thresholds 0.05..0.95, report the best.",
            rich_help_panel=BACKGROUND,
        ),
    ] = False,
    align: Annotated[
        Literal["reference", "corners"] | None,
        typer.Option(
            help="How score maps lie on pixels: reference or corners (of a run's recipe).",
            rich_help_panel=BACKGROUND,
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Of a run: choose the probability from which each class counts as present.",
            rich_help_panel=THRESHOLDS,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON file for what --calibrate chose, for `wsss label --threshold`.",
            rich_help_panel=THRESHOLDS,
        ),
    ] = None,
    coverage: Annotated[
        bool,
        typer.Option(
            "--coverage",
            help="Of a job with --format png,confidence: what each --min-confidence would keep.",
            rich_help_panel=THRESHOLDS,
        ),
    ] = False,
    instances: Annotated[
        bool,
        typer.Option(
            "--instances",
            help="Measure instances by average precision at IoU 0.5, 0.7 and 0.50 to 0.95.",
        ),
    ] = False,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a run's networks, stored CAMs or label maps by mIoU, and say how it was measured.

    Instances are measured by average precision instead.
    """
    from ..training.data.readers import read_image_set
    from ..training.predict.measure import evaluate

    mode = one_mode(mode, stage, "--stage")
    if out is not None and not calibrate:
        raise ConfigError("--out is for what --calibrate chose: leave it out, or add --calibrate")
    if calibrate or coverage or instances:
        several = calibrate + coverage + instances > 1
        if threshold is not None or sweep or align is not None or several:
            raise ConfigError(
                "--calibrate, --coverage and --instances measure something else than mIoU by a "
                "background: give one of them, without --threshold, --sweep and --align"
            )
        if mode is not None:
            source = (
                "--calibrate asks the classifier"
                if calibrate
                else "--coverage reads a job's labels"
                if coverage
                else "--instances measures the walk"
            )
            raise ConfigError(
                f"{source}, whatever the mode, and --mode is '{mode}': leave --mode out"
            )
        if calibrate:
            _calibrate(predictions, read_image_set(data), split, device, out, as_json)
        elif instances:
            _instances(predictions, read_image_set(data), split, image_labels, device, as_json)
        else:
            _coverage(predictions, read_image_set(data), split, as_json)
        return
    images = read_image_set(data)
    with progress() as shown:
        report = evaluate(
            predictions,
            images,
            split=split,
            mode=mode,
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


def _calibrate(
    run: Path,
    images: "ImageSet",
    split: str | None,
    device: Device,
    out: Path | None,
    as_json: bool,
) -> None:
    from ..runtime.io.files import atomic_write_bytes
    from ..training.predict.calibration import calibrate

    if out is not None and out.exists():
        raise ArtifactError(f"'{out}' exists: give --out another name, or remove it")
    with progress() as shown:
        found = calibrate(run, images, split=split, device=device, progress=shown)
    if out is not None:
        text = json.dumps(found.thresholds, indent=2, allow_nan=False)
        atomic_write_bytes(out, (text + "\n").encode("ascii"))
    if as_json:
        print_json(found.to_json())
    else:
        _print_calibration(found)
        if out is not None:
            stdout.print(f"{out}", soft_wrap=True)


def _print_calibration(found: "Calibration") -> None:
    from rich.table import Table

    stdout.print(f"{found.run}: list {found.list_name}, {found.images} images", soft_wrap=True)
    if found.learnt_from:
        stdout.print(
            "The classifier was trained on images of this list, of which it is surer than of new "
            "ones: choose a list that it has not seen.",
            soft_wrap=True,
        )
    table = Table("class", "images", "threshold", box=None)
    for heading in ("precision", "recall", "F1 %", "at 0.5", ""):
        table.add_column(heading)
    table.columns[0].overflow = "fold"
    for each in found.classes:
        chosen = each.chosen
        shares = (chosen.precision, chosen.recall, chosen.f1, each.usual.f1)
        figures = (f"{100 * share:.1f}" for share in shares)
        table.add_row(each.name, str(each.images), f"{each.threshold:.4f}", *figures, each.note)
    stdout.print(table)


def _coverage(out: Path, images: "ImageSet", split: str | None, as_json: bool) -> None:
    from ..training.evaluation.coverage import measure_coverage

    with progress() as shown:
        report = measure_coverage(out, images, split=split, progress=shown)
    if as_json:
        print_json(report.to_json())
    else:
        _print_coverage(report)


def _print_coverage(report: "CoverageReport") -> None:
    from rich.table import Table

    stdout.print(f"{report.predictions}", soft_wrap=True)
    stdout.print(f"list {report.list_name}: {report.images} images", soft_wrap=True)
    table = Table("min confidence", "kept %", "of objects %", "right %", "mIoU %", box=None)
    table.add_column("classes")
    for row in report.rows:
        shares = (row.kept, row.objects_kept, row.accuracy, row.miou)
        figures = ("-" if share is None else f"{share:.2f}" for share in shares)
        table.add_row(f"{row.threshold:.2f}", *figures, str(row.classes))
    stdout.print(table)


def _instances(
    path: Path,
    images: "ImageSet",
    split: str | None,
    image_labels: bool,
    device: Device,
    as_json: bool,
) -> None:
    from ..training.predict.measure import measure_instances

    with progress() as shown:
        report = measure_instances(
            path,
            images,
            split=split,
            use_image_labels=image_labels,
            device=device,
            progress=shown,
        )
    if as_json:
        print_json(report.to_json())
    else:
        _print_instances(report)


def _print_instances(report: "InstanceReport") -> None:
    from rich.table import Table

    labels = {True: "used", False: "not used", None: "unknown"}[report.image_labels_used]
    stdout.print(f"{report.predictions}", soft_wrap=True)
    stdout.print(
        f"list {report.list_name}: {report.images} images, {report.instances} instances, "
        f"{report.predicted} predicted, image labels {labels}",
        soft_wrap=True,
    )
    table = Table("class", "instances", "predicted", "AP50 %", "AP70 %", "AP %", box=None)
    table.columns[0].overflow = "fold"
    for name, row in report.classes.items():
        counts = (f"{row[key]:.0f}" for key in ("instances", "predicted"))
        shares = (row[key] for key in ("ap50", "ap70", "ap"))
        table.add_row(name, *counts, *("-" if s != s else f"{s:.1f}" for s in shares))
    stdout.print(table)
    stdout.print(f"AP50 {report.ap50:.2f} %, AP70 {report.ap70:.2f} %, AP {report.ap:.2f} %")
    for source, row in report.sources.items():
        stdout.print(
            f"  {source}: AP50 {row['ap50']:.2f} %, AP70 {row['ap70']:.2f} %, AP {row['ap']:.2f} % "
            f"({row['images']:.0f} images, {row['instances']:.0f} instances)",
            soft_wrap=True,
        )
