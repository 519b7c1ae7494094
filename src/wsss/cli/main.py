"""The `wsss` command: registers the commands and turns errors into exit codes.

0 done, 1 the user's input or environment, 2 wrong usage, 3 finished but some images failed,
130 interrupted with all finished work kept.
"""

import os
import sys
from typing import Annotated

import typer

from ..errors import WsssError
from ..version import __version__
from .data import data
from .demo import demo
from .eval import evaluate_command
from .label import label
from .output import print_error
from .train import train

app = typer.Typer(
    name="wsss",
    help="Image-level labels in, pixel-exact segmentation out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(train)
app.command(name="eval")(evaluate_command)
app.command()(label)
app.command()(data)
app.command()(demo)


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
    try:
        app()
    except WsssError as error:
        print_error(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        print_error("interrupted; what was finished is kept, the same command continues")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output left (`wsss data DIR | head`): that is no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
