"""`wsss label`: by a bundle, here or on a server, or by a run."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import ConfigError
from .options import Backend, GraphDevice, SharedMemory
from .output import print_json, progress, stdout
from .signals import termination_as_interrupt

if TYPE_CHECKING:
    from ..runtime.backends.triton_options import TritonOptions


def label(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES",
            help="Images, and folders searched in depth; --out itself is left out of the search.",
        ),
    ],
    model: Annotated[
        Path, typer.Option(help="Bundle that `wsss export` wrote, or run of `wsss train`.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for palette PNGs, mirroring the inputs.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV or JSON with the image-level labels of every image."),
    ] = None,
    by: Annotated[
        Literal["segmenter", "labels", "walk", "cam"] | None,
        typer.Option(
            help="segmenter, labels (walk and CRF), walk, or cam (runs only); default: with "
            "--labels the walk of a bundle or the labels of a run, else segmenter."
        ),
    ] = None,
    crf: Annotated[
        bool | None,
        typer.Option(
            "--crf/--no-crf",
            help="The recipe's dense CRF on what the network says; default: for a run as its "
            "recipe says, for a bundle without it, because it needs torch.",
        ),
    ] = None,
    backend: Annotated[
        Backend,
        typer.Option(
            help="What computes a bundle; auto takes onnxruntime, else torch; triton needs --url."
        ),
    ] = "auto",
    device: Annotated[
        GraphDevice,
        typer.Option(
            help="auto takes a GPU where there is one; tensorrt is onnxruntime's way to use it."
        ),
    ] = "auto",
    url: Annotated[
        str | None,
        typer.Option(
            help="Triton server: http://HOST:PORT or grpc://HOST:PORT, https, grpcs; it must serve "
            "the bundle of --model."
        ),
    ] = None,
    server_model: Annotated[
        str | None,
        typer.Option(
            help="Model on the server; default: label, or segmenter; label_ensemble is another."
        ),
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option(help="Requests to the server under way at once; default 8.")
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(help="Seconds for one request; an image that takes longer fails; default 60."),
    ] = None,
    patience: Annotated[
        float | None,
        typer.Option(
            help="Seconds that an outage or overload of the server may last; default 120."
        ),
    ] = None,
    shared_memory: Annotated[
        SharedMemory | None,
        typer.Option(help="With a server on this host; default auto: where it takes it."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Write again what is there, remove what another job wrote."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Label images by a bundle or a run, with or without given image-level labels.

    Finished images are kept: the same command continues an interrupted job.
    """
    from ..runtime.bundle import is_bundle

    server = _server(
        backend,
        url,
        model=server_model,
        in_flight=in_flight,
        deadline_s=deadline,
        patience_s=patience,
        shared_memory=shared_memory,
    )
    with termination_as_interrupt(), progress() as shown:
        if is_bundle(model):
            from ..runtime.bundle_labelling import label_by_bundle

            summary = label_by_bundle(
                images,
                model,
                out,
                labels_path=labels,
                kind=by,
                crf=crf,
                backend=backend,
                device=device,
                server=server,
                overwrite=overwrite,
                progress=shown,
            )
        else:
            from ..training.label import label_by_run

            if backend not in ("auto", "torch"):
                raise ConfigError(
                    f"'{model}' is no bundle, and a run is computed by torch: `wsss export` it for "
                    f"--backend {backend}"
                )
            if device == "tensorrt":
                raise ConfigError(
                    f"'{model}' is no bundle, and a run is computed by torch: choose another "
                    "--device"
                )
            summary = label_by_run(
                images,
                model,
                out,
                labels_path=labels,
                kind=by,
                crf=crf,
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


def _server(backend: str, url: str | None, **given: str | float | None) -> "TritonOptions | None":
    """The server to use, if any.

    Raises:
        ConfigError: options of a server without one, a server without its URL, a bad value.
    """
    from ..runtime.backends.triton_options import TritonOptions

    options = {name: value for name, value in given.items() if value is not None}
    if backend != "triton":
        if options or url is not None:
            raise ConfigError(
                "--url, --server-model, --in-flight, --deadline, --patience and --shared-memory "
                "are of a server: give --backend triton as well, or leave them out"
            )
        return None
    if url is None:
        raise ConfigError("--backend triton needs the server: give --url http://HOST:PORT")
    return TritonOptions(url, **options)  # type: ignore[arg-type]
