"""`wsss train`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device
from .output import print_json, progress, stdout


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a TOML file.")
    ],
    data: Annotated[Path, typer.Option(help="Folder of the image set.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; continued where it stopped.")],
    weights: Annotated[
        Path | None, typer.Option(help="Backbone weights: .safetensors, or torchvision .pth.")
    ] = None,
    cams: Annotated[
        Path | None,
        typer.Option(help="Folder of NAME.npz score maps that replace the CAM stage."),
    ] = None,
    seeds: Annotated[
        Path | None,
        typer.Option(help="Folder of NAME.png seeds (255 = undecided) that replace the seeds."),
    ] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(help="Run whose finished stages are copied where they are the same."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Change one value of the recipe."),
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(help="Only these of the method's, with commas; a wrong name lists them."),
    ] = None,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the run in --out first and start anew.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a method on images with image-level labels, from CAMs to a segmenter.

    A killed run continues with the same command, to the same result. Under `torchrun` the batch
    is shared by the processes and the result stays the same.
    """
    from ..training.data.readers import read_image_set
    from ..training.engine import distributed
    from ..training.pipeline import train as run_training
    from ..training.predict.run_report import write_run_report
    from ..training.recipes import load_recipe

    resolved = load_recipe(recipe, set_ or ())
    images = read_image_set(data)
    with progress() as shown:
        result = run_training(
            resolved,
            images,
            out,
            weights_path=weights,
            cams_path=cams,
            seeds_path=seeds,
            reuse=reuse or (),
            stages=[name.strip() for name in stages.split(",")] if stages else None,
            device=device,
            overwrite=overwrite,
            progress=shown,
        )
        if not distributed.is_main_environment():
            return
        report = write_run_report(out, images, device=device, progress=shown)
    if as_json:
        print_json(result.to_json() | {"report": str(report)})
        return
    for stage, figures in result.figures.items():
        shown_figures = ", ".join(
            f"{name} none" if value is None else f"{name} {value:.2f}"
            for name, value in figures.items()
        )
        stdout.print(f"{stage:<10} {result.seconds[stage]:>7.0f} s  {shown_figures}")
    stdout.print(f"report: {report}", soft_wrap=True)
