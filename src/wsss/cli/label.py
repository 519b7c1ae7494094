"""`wsss label`: by a bundle, here or on a server, or by a run."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import ConfigError
from .exit_codes import termination_as_interrupt
from .options import Backend, GraphDevice, one_mode, refuse_shared_memory
from .output import print_json, progress, stdout

if TYPE_CHECKING:
    from ..runtime.backends.triton.options import TritonOptions
    from ..runtime.bulk.plan import Settings
    from ..runtime.predictor import PredictorSpec

MODEL, SERVER = "How the model is used", "Triton server (--backend triton)"
RUNNING, JOB = "Links, sizes, processes, machines", "A job that began before"


def label(
    out: Annotated[Path, typer.Option(help="Folder of the job; label maps go to its `masks`.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGES",
            help="Images, folders searched in depth, quoted globs, .txt lists, .tar shards, URLs; "
            "--out itself is left out of the search.",
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Bundle that `wsss export` wrote, or run of `wsss train`.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV or JSON with the image-level labels of every image."),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="walk, labels (walk and dense CRF), segmenter, or cam (runs only); default: walk "
            "with --labels, else segmenter, else the next best mode that the model has.",
        ),
    ] = None,
    by: Annotated[str | None, typer.Option(hidden=True)] = None,
    crf: Annotated[
        bool | None,
        typer.Option(
            "--crf/--no-crf",
            help="Refine by the recipe's dense CRF, which needs torch; default: only in mode "
            "labels.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    backend: Annotated[
        Backend,
        typer.Option(
            help="What computes a bundle: auto is onnxruntime; triton needs --url. torch computes "
            "runs only.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    device: Annotated[
        GraphDevice,
        typer.Option(
            help="auto takes a GPU where there is one; tensorrt is onnxruntime's way to use it.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    url: Annotated[
        str | None,
        typer.Option(
            help="Triton server: http://HOST:PORT or grpc://HOST:PORT, https, grpcs; it must serve "
            "the bundle of --model.",
            rich_help_panel=SERVER,
        ),
    ] = None,
    server_model: Annotated[
        str | None,
        typer.Option(
            help="Model on the server; default: label, or segmenter; label_ensemble is another.",
            rich_help_panel=SERVER,
        ),
    ] = None,
    in_flight: Annotated[
        int | None,
        typer.Option(
            help="Requests to the server under way at once; default 8.", rich_help_panel=SERVER
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            help="Seconds for one request; an image that takes longer fails; default 60.",
            rich_help_panel=SERVER,
        ),
    ] = None,
    patience: Annotated[
        float | None,
        typer.Option(
            help="Seconds that an outage or overload of the server may last; default 120.",
            rich_help_panel=SERVER,
        ),
    ] = None,
    shared_memory: Annotated[str | None, typer.Option(hidden=True)] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|FILE",
            help="Probability from which the classifier calls a class present; a JSON file of "
            "`wsss eval --calibrate` has one for each. Default 0.5.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Of png, confidence, scores, overlay, coco, instances, coco-instances, yolo, "
            "labelstudio, cvat, labelme, separated by commas; tar packs them into a tar a unit. "
            "Default: png; with --instances png,instances,coco-instances.",
        ),
    ] = None,
    instances: Annotated[
        bool,
        typer.Option("--instances", help="Tell single objects apart as well, where the model can."),
    ] = False,
    min_confidence: Annotated[
        float | None,
        typer.Option(help="Pixels below it become 255, no statement; 0 to 1, by bundles."),
    ] = None,
    follow_links: Annotated[
        bool,
        typer.Option(
            "--follow-links",
            help="Search folders behind links too; loops end.",
            rich_help_panel=RUNNING,
        ),
    ] = False,
    batch: Annotated[
        int,
        typer.Option(
            help="Images of equal size in the network together; for GPUs.", rich_help_panel=RUNNING
        ),
    ] = 1,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            help="Larger images fail; default 100,000,000, at most 536,870,912.",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    tile_pixels: Annotated[
        int | None,
        typer.Option(
            help="Larger images are labelled in overlapping tiles; default 4,194,304.",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes; default: one a core for a bundle on the CPU, one for a GPU or a "
            "server, 0 for a run; with 0 this one labels, and dies with an image that kills it.",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="local: processes of this machine; ray: actors, a core or GPU each.",
            rich_help_panel=RUNNING,
        ),
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Running Ray cluster whose nodes share the disk, auto or HOST:PORT; default: one "
            "is started on this machine.",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Label part I of N, from 0, of a job on a shared disk; then --merge.",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            help="Make the results of a job whose shards are all done.",
            rich_help_panel=JOB,
        ),
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Write report.html of the job in --out, as far as it is; also while it runs.",
            rich_help_panel=JOB,
        ),
    ] = False,
    append: Annotated[
        bool,
        typer.Option(
            "--append", help="Look for images that were not there at first.", rich_help_panel=JOB
        ),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Try again what failed, as the files are now.",
            rich_help_panel=JOB,
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="First remove the job that is in --out, whatever it is.",
            rich_help_panel=JOB,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done, with checks; write nothing."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Label images by a bundle or a run, with or without given image-level labels.

    The same command goes on with an interrupted job; failed images are listed in failures.csv.
    """
    refuse_shared_memory(shared_memory is not None)
    server = _server(
        backend,
        url,
        model=server_model,
        in_flight=in_flight,
        deadline_s=deadline,
        patience_s=patience,
    )
    if dry_run and (merge or report or shard is not None or append or retry_failed or overwrite):
        raise ConfigError(
            "--dry-run looks at the whole of a job: leave --merge, --report, --shard, --append, "
            "--retry-failed and --overwrite out"
        )
    if merge or report:
        if images or model is not None or (merge and report):
            raise ConfigError(
                "--merge and --report work on what is in --out: give one of them, and leave IMAGES "
                "and --model out"
            )
        finish = _merge if merge else _report
        finish(out, as_json)
        return
    if not images or model is None:
        raise ConfigError(
            "nothing to label: give IMAGES and --model (only --merge and --report need neither)"
        )
    from ..labelling import open_job_spec
    from ..runtime.bulk.plan import DEFAULT_TILE_PIXELS, Settings
    from ..runtime.bulk.run import Shard, label_in_bulk
    from ..runtime.io.image_io import DEFAULT_MAX_PIXELS

    settings = Settings(
        formats=_formats(formats, instances),
        min_confidence=min_confidence,
        batch=batch,
        max_pixels=DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels,
        tile_pixels=DEFAULT_TILE_PIXELS if tile_pixels is None else tile_pixels,
    )
    part = Shard.parse(shard) if shard is not None else None
    spec = open_job_spec(
        model,
        mode=one_mode(mode, by, "--by"),
        crf=crf,
        has_labels=labels is not None,
        threshold=threshold,
        backend=backend,
        device=device,
        server=server,
        instances=not {"instances", "coco-instances"}.isdisjoint(settings.formats),
    )
    if dry_run:
        _look(images, spec, out, settings, labels, follow_links, as_json)
        return
    with termination_as_interrupt(), progress() as shown:
        summary = label_in_bulk(
            images,
            spec,
            out,
            settings=settings,
            labels_path=labels,
            workers=workers,
            engine=engine,
            ray_address=ray_address,
            shard=part,
            overwrite=overwrite,
            append=append,
            follow_links=follow_links,
            retry_failed=retry_failed,
            progress=shown,
        )
    if as_json:
        print_json(summary.to_json())
    else:
        rest = f", {summary.remaining} remain" if summary.remaining else ""
        stdout.print(
            f"{summary.labelled} labelled, {summary.kept} kept, {summary.failed} failed{rest}: "
            f"{summary.out}",
            soft_wrap=True,
        )
    if summary.failed:
        sys.exit(3)


def _formats(names: str | None, instances: bool) -> tuple[str, ...]:
    """The formats that were asked for, or those of a job with or without instances."""
    if names is None:
        return ("png", "instances", "coco-instances") if instances else ("png",)
    formats = tuple(name.strip() for name in names.split(","))
    if instances and not {"instances", "coco-instances"} & set(formats):
        raise ConfigError(
            f"--format {names} has no place for --instances: add instances or coco-instances"
        )
    return formats


def _look(
    images: list[str],
    model: "PredictorSpec",
    out: Path,
    settings: "Settings",
    labels: Path | None,
    follow_links: bool,
    as_json: bool,
) -> None:
    from ..runtime.bulk.dry_run import dry_run

    found = dry_run(
        images, model, out, settings=settings, labels_path=labels, follow_links=follow_links
    )
    if as_json:
        print_json(found.to_json())
        return
    begun = f"{found.labelled} labelled, {found.failed} failed" if found.is_begun else "a new job"
    lines = [f"{found.images} images in {found.units} units: {begun}"]
    if found.left_out:
        lines.append(found.left_out)
    if found.with_labels is not None:
        lines.append(f"{found.with_labels} images have classes in the label file")
    lines.append(f"{found.bad} of {found.looked_at} headers that were read cannot be used")
    lines += [f"  {bad.code}: {bad.reason}" for bad in found.first_bad]
    used = found.bytes_per_label_map
    mean = f", {used:,.0f} bytes a label map so far" if used is not None else ""
    lines.append(f"{found.free_bytes / 1e9:.1f} GB are free{mean}")
    lines.append(f"nothing was written: {found.out}")
    for line in lines:
        stdout.print(line, soft_wrap=True)


def _merge(out: Path, as_json: bool) -> None:
    from ..runtime.bulk.run import finish_job

    with progress() as shown:
        counts = finish_job(out, shown)
    if as_json:
        print_json(asdict(counts))
    else:
        stdout.print(f"{counts.labelled} labelled, {counts.failed} failed: {out}", soft_wrap=True)
    if counts.failed:
        sys.exit(3)


def _report(out: Path, as_json: bool) -> None:
    from ..runtime.bulk.report.page import write_job_report

    with progress() as shown:
        path = write_job_report(out, shown)
    if as_json:
        print_json({"report": str(path)})
    else:
        stdout.print(f"{path}", soft_wrap=True)


def _server(backend: str, url: str | None, **given: str | float | None) -> "TritonOptions | None":
    """The server to use, if any.

    Raises:
        ConfigError: options of a server without one, a server without its URL, a bad value.
    """
    from ..runtime.backends.triton.options import TritonOptions

    options = {name: value for name, value in given.items() if value is not None}
    if backend != "triton":
        if options or url is not None:
            raise ConfigError(
                "--url, --server-model, --in-flight, --deadline and --patience are of a server: "
                "give --backend triton as well, or leave them out"
            )
        return None
    if url is None:
        raise ConfigError("--backend triton needs the server: give --url http://HOST:PORT")
    return TritonOptions(url, **options)  # type: ignore[arg-type]
