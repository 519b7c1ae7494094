"""`wsss serve`: a bundle or a model repository, served by a local Triton Inference Server."""

import shlex
import signal
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from ..errors import MissingDependencyError
from .output import print_json, stderr, stdout


def serve(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE_OR_REPO",
            help="Bundle of `wsss export`, or repository of `wsss export --triton`.",
        ),
    ],
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; anything but loopback opens it to others."),
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535)] = 8001,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535)] = 8002,
    environment: Annotated[
        Path | None,
        typer.Option(
            help="Virtual environment with nvidia-pytriton; default: tritonserver on PATH, then "
            "$WSSS_TRITON_ENV."
        ),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="File for the server's own log.")] = None,
    ready_seconds: Annotated[
        float, typer.Option(min=1, help="How long all models may take to load.")
    ] = 120,
    drain_seconds: Annotated[
        int, typer.Option(min=0, help="How long accepted requests may take after SIGTERM.")
    ] = 30,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object when the server is ready.")
    ] = False,
) -> None:
    """Serve label maps over HTTP and gRPC until SIGTERM or Ctrl-C.

    Where no tritonserver is installed, the line that runs NVIDIA's container is printed instead.
    """
    from ..export.triton import RepositoryOptions, check_repository, write_repository
    from ..runtime.bundle.open import is_bundle
    from ..runtime.serving.foreground import serve_in_foreground
    from ..runtime.serving.installation import container_command, find_installation
    from ..runtime.serving.local_server import LocalServer, Ports
    from ..runtime.system import free_cores

    ports = Ports(http_port, grpc_port, metrics_port)
    with tempfile.TemporaryDirectory(prefix="wsss_repository_") as folder:
        repository = source
        if is_bundle(source):
            repository = Path(folder, "repository")
            # A session a core: with several threads ORT's idle ones keep the server from its work.
            write_repository(
                source, repository, RepositoryOptions(instances=free_cores(), intra_op_threads=1)
            )
        models = sorted(check_repository(repository))
        try:
            installation = find_installation(environment)
        except MissingDependencyError:
            kept = source
            if repository != source:  # which is gone when this command ends
                kept = Path("models")
                stdout.print(
                    f"wsss export {shlex.quote(str(source))} --triton {kept}", soft_wrap=True
                )
            numbers = (http_port, grpc_port, metrics_port)
            stdout.print(container_command(kept, host=host, ports=numbers), soft_wrap=True)
            raise
        server = LocalServer(
            installation, repository, ports=ports, host=host, log=log, drain_seconds=drain_seconds
        )
        with closing(server):

            def tell() -> None:
                if as_json:
                    urls = {"http": server.http, "grpc": server.grpc, "metrics": server.metrics}
                    print_json({**urls, "models": models, "pid": server.pid})
                else:
                    stdout.print(
                        f"ready: http://{server.http}, grpc://{server.grpc}, {server.metrics}; "
                        f"{', '.join(models)}",
                        soft_wrap=True,
                    )
                sys.stdout.flush()

            ended = serve_in_foreground(
                server,
                tell,
                lambda: stderr.print("answering what was accepted, then ending", soft_wrap=True),
                ready_seconds=ready_seconds,
            )
    if ended == signal.SIGINT:
        raise KeyboardInterrupt
