"""`wsss export`: a run becomes a bundle; a bundle gets TensorRT engines, or goes to Triton."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import ConfigError
from .exit_codes import termination_as_interrupt
from .output import print_json, progress, stdout

if TYPE_CHECKING:
    from ..export.bundle import ExportResult
    from ..export.tensorrt import EngineSettings
    from ..export.triton.options import RepositoryOptions


RUN_OPTIONS = ("precision", "data", "layout", "tolerance", "force", "max_batch", "max_side")
"""Options that shape the graphs: an exported bundle has them already."""

GRAPHS, ENGINES, TRITON = "Graphs of a run", "TensorRT engines", "Triton Inference Server"


@termination_as_interrupt()  # what is half written goes at the end, as after Ctrl-C
def export(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_BUNDLE",
            help="Run of `wsss train`; or a bundle, for --tensorrt or --triton.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the bundle; not for a bundle as source.")
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option(
            help="Of the networks; inputs, outputs and the walk stay as they are.",
            rich_help_panel=GRAPHS,
        ),
    ] = "fp32",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Image set of yours: calibrates int8, and lower precisions are measured on it.",
            rich_help_panel=GRAPHS,
        ),
    ] = None,
    layout: Annotated[
        Literal["nhwc", "nchw"],
        typer.Option(help="Order of an input image's axes.", rich_help_panel=GRAPHS),
    ] = "nhwc",
    graphs: Annotated[
        str | None,
        typer.Option(
            help="Only these, with commas: cam, the affinity stage, refine, label, segmenter.",
            rich_help_panel=GRAPHS,
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, help="Largest error of a float32 graph against torch.", rich_help_panel=GRAPHS
        ),
    ] = 1e-4,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Write a precision that changes more labels than allowed.",
            rich_help_panel=GRAPHS,
        ),
    ] = False,
    max_batch: Annotated[
        int,
        typer.Option(
            min=1, max=1024, help="Largest batch that engines take.", rich_help_panel=ENGINES
        ),
    ] = 8,
    max_side: Annotated[
        int,
        typer.Option(
            min=64,
            max=8192,
            help="Longest image side that engines take, in pixels.",
            rich_help_panel=ENGINES,
        ),
    ] = 1024,
    tensorrt: Annotated[
        bool,
        typer.Option(
            "--tensorrt", help="Build engines for the GPU of this machine.", rich_help_panel=ENGINES
        ),
    ] = False,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible",
            help="Engines that later TensorRT versions open.",
            rich_help_panel=ENGINES,
        ),
    ] = False,
    hardware_compatible: Annotated[
        bool,
        typer.Option(
            "--hardware-compatible",
            help="Engines for Ampere and all later GPUs.",
            rich_help_panel=ENGINES,
        ),
    ] = False,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            help="File of measured kernels, which makes builds faster.", rich_help_panel=ENGINES
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="With a bundle: print the trtexec lines and build nothing.",
            rich_help_panel=ENGINES,
        ),
    ] = False,
    triton: Annotated[
        Path | None,
        typer.Option(
            metavar="REPO",
            help="Write a model repository for Triton Inference Server.",
            rich_help_panel=TRITON,
        ),
    ] = None,
    triton_version: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of the version that is added to a repository; default: the next one.",
            rich_help_panel=TRITON,
        ),
    ] = None,
    triton_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="How it is served, may be repeated: device=gpu, instances=2, max_batch_size=16, "
            "decode=true; a repository keeps what is not named. See docs/serving.md.",
            rich_help_panel=TRITON,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace the bundle in --out, and the repository with its versions and settings.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Turn a run into ONNX graphs that need no training code, measured against torch.

    Nothing is written unless every graph agrees with torch, and a lower precision with float32.
    """
    from ..export.tensorrt import EngineSettings
    from ..runtime.bundle.open import is_bundle

    serving = _serving_options(
        triton, triton_version, triton_set or [], overwrite=overwrite, dry_run=dry_run
    )
    names = tuple(name.strip() for name in graphs.split(",")) if graphs is not None else None
    engine_settings = EngineSettings(
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )
    shown: dict[str, Any] = {}
    if is_bundle(source):
        if out is not None or not (tensorrt or dry_run or triton):
            raise ConfigError(
                f"'{source}' is a bundle already: give --tensorrt, --triton or --dry-run without "
                "--out, or a run"
            )
        options_of_runs = RUN_OPTIONS if triton else (*RUN_OPTIONS, "overwrite")
        given = [name for name in options_of_runs if _was_given(context, name)]
        if given:
            raise ConfigError(
                f"--{given[0].replace('_', '-')} is for runs: bundle '{source}' is exported "
                "already, leave it out"
            )
        folder = source
    else:
        if out is None:
            raise ConfigError("--out is missing: the folder of the bundle")
        if dry_run:
            raise ConfigError("--dry-run reads the graphs of a bundle: export the run first")
        if tensorrt:  # found out before minutes of work
            from ..runtime.backends.tensorrt_backend import import_cuda_torch, import_tensorrt

            import_tensorrt()
            import_cuda_torch("engines are built for its device")
        folder = out
        from ..export.bundle import export as export_run
        from ..training.data.readers import read_image_set

        images = read_image_set(data) if data else None
        with progress() as bars:
            result = export_run(
                source,
                out,
                precision=precision,
                layout=layout,
                graphs=names,
                images=images,
                tolerance=tolerance,
                symmetric=tensorrt,
                max_batch=max_batch,
                max_side=max_side,
                force=force,
                overwrite=overwrite,
                progress=bars,
            )
        shown = result.to_json()
        if not as_json:
            _show(result)
    if tensorrt or dry_run:
        shown["engines"] = _engines(folder, engine_settings, names, dry_run, as_json)
    if triton is not None and serving is not None:
        from ..export.triton.repository import write_repository

        written = write_repository(
            folder, triton, serving, version=triton_version, overwrite=overwrite
        )
        shown["triton"] = written.to_json()
        if not as_json:
            for name, (before, after) in written.changed.items():
                stdout.print(f"changed for all versions: {name} {before} -> {after}")
            models = ", ".join(written.models)
            stdout.print(f"Triton models, version {written.version}: {models}", soft_wrap=True)
            stdout.print(f"Triton repository: {written.folder}", soft_wrap=True)
    if as_json:
        print_json(shown)


def _serving_options(
    repository: Path | None,
    version: int | None,
    settings: list[str],
    *,
    overwrite: bool,
    dry_run: bool,
) -> "RepositoryOptions | None":
    """What is asked of the repository, refused here before an export takes its time."""
    if repository is None:
        if version is not None or settings:
            raise ConfigError("--triton-version and --triton-set need --triton REPO")
        return None
    if dry_run:
        raise ConfigError("--dry-run writes nothing: leave --triton out")
    from ..export.triton.configs import model_config_pb2
    from ..export.triton.options import options_from_settings
    from ..export.triton.repository import require_free

    model_config_pb2()
    existing = require_free(repository, version=version, overwrite=overwrite)
    return options_from_settings(settings, existing.options if existing and not overwrite else None)


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _engines(
    folder: Path,
    settings: "EngineSettings",
    names: tuple[str, ...] | None,
    dry_run: bool,
    as_json: bool,
) -> list[str]:
    """Engine files that were built, or lines that would build them."""
    from ..export.engines import add_engines, engine_commands

    if dry_run:
        lines = engine_commands(folder, settings, names)
    else:
        with progress() as bars:
            lines = add_engines(folder, settings, names, progress=bars)
    if not as_json:
        for line in lines:
            stdout.print(line, soft_wrap=True)
    return lines


def _show(result: "ExportResult") -> None:
    """A line for each graph: size, distance to torch, and what a lower precision changed."""
    sizes = result.to_json()["graphs"]
    for name, parity in result.parity.items():
        equal = "" if parity.labels_equal is None else f", labels {parity.labels_equal:.2%}"
        line = (
            f"{name:<10} {sizes[name] / 1e6:>7.2f} MB  float32 against torch: largest error "
            f"{max(parity.max_error.values()):.1e}{equal}"
        )
        agreement = result.agreement.get(name)
        if agreement is not None:
            line += (
                f"; {result.bundle.precision} against float32: labels "
                f"{agreement.labels_equal:.2%}, {agreement.speedup:.2f} x as fast"
            )
            if agreement.miou is not None:
                line += f", mIoU {agreement.miou:.1f} (float32 {agreement.miou_float32:.1f})"
        stdout.print(line, soft_wrap=True)
    stdout.print(f"bundle: {result.bundle.folder}", soft_wrap=True)
