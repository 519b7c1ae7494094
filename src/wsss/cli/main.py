"""The `wsss` command: registers the commands; see `exit_codes` for how they end."""

import io
import sys
from typing import Annotated

import typer

from ..version import __version__
from .bench import app as bench_app
from .compare import compare
from .data import data
from .demo import demo
from .doctor import doctor
from .eval import evaluate_command
from .exit_codes import Command, end_of_wrong_usage
from .export import export
from .label import label
from .serve import serve
from .train import train


class _Serve(Command):
    interrupted = "ended by Ctrl-C"


app = typer.Typer(
    name="wsss",
    help="Image-level labels in, pixel-exact segmentation out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)
app.command(name="train", cls=Command)(train)
app.command(name="eval", cls=Command)(evaluate_command)
app.command(name="compare", cls=Command)(compare)
app.command(name="export", cls=Command)(export)
app.command(name="label", cls=Command)(label)
app.command(name="serve", cls=_Serve)(serve)
app.command(name="data", cls=Command)(data)
app.command(name="demo", cls=Command)(demo)
app.command(name="doctor", cls=Command)(doctor)
app.add_typer(bench_app, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wsss {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names are bytes, not all UTF-8
    try:
        sys.exit(app(prog_name="wsss", standalone_mode=False))
    except typer.TyperException as error:
        end_of_wrong_usage(error)


if __name__ == "__main__":
    main()
