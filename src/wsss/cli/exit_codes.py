"""What a command raises, as one line on stderr and an exit code.

0 done, 1 the user's input or environment, 2 wrong usage (typer's), 3 finished but some images
failed, 130 interrupted with all finished work kept. SIGTERM, which schedulers send, ends a command
as Ctrl-C does.

The library names parameters in backticks (`overwrite`), because Python users set those. This
module is the only place that turns them into options of the command that runs (--overwrite).
"""

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from typer import BadParameter, TyperException
from typer.core import TyperCommand

from ..errors import WsssError, fault_text
from ..runtime.backends.registry import BACKENDS
from .output import print_error

EXTRAS = {"torch": "train", "onnxscript": "export"}
EXTRAS |= {entry.package: entry.extra for entry in BACKENDS.values()}
"""Optional packages, and the extra that installs them."""
_RENAMED = {
    "cams_path": "cams",
    "images": "data",
    "labels_path": "labels",
    "overrides": "set_",
    "seeds_path": "seeds",
    "server": "url",
    "server.model": "server_model",
    "version": "triton_version",
    "weights_path": "weights",
}
"""Parameters of the library that have another name in commands, without their dashes."""

_PARAMETER = re.compile(r"`([a-z][a-z_.]*)`")


class Command(TyperCommand):
    """A command that ends with our exit codes, and whose errors name its own options.

    Attributes:
        interrupted: what Ctrl-C prints.
    """

    interrupted = "interrupted; what was finished is kept, the same command continues"

    def invoke(self, ctx: Any) -> Any:
        """Run the command; typer calls this after it has parsed the arguments."""
        with exit_codes(self.interrupted, self.params):
            return super().invoke(ctx)


@contextmanager
def exit_codes(interrupted: str, params: Sequence[Any] = ()) -> Iterator[None]:
    """Around a command; must be inside of typer, which has ways of its own with some of these.

    Args:
        interrupted: what Ctrl-C prints.
        params: typer's parameters of the command.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # a full disk shows here rather than when the interpreter ends
    except WsssError as error:
        _leave(1, in_options(str(error), params))
    except KeyboardInterrupt:
        _leave(130, interrupted)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        _leave(1, f"{package} is not installed: pip install 'wsss[{EXTRAS[package]}]'")
    except BrokenPipeError:
        # The reader of our output left (`wsss data DIR | head`): nobody to tell, but not done.
        _drop_output()
        sys.exit(1)
    except OSError as error:
        _drop_output()
        place = f"'{error.filename}'" if error.filename else "output"
        reason = error.strerror or str(error)
        _leave(1, f"{place}: {reason}: check the disk, and who may read and write there")


def in_options(text: str, params: Sequence[Any]) -> str:
    """A message of the library with options of a command in place of parameters.

    Args:
        text: names parameters in backticks; those that the command does not have stay as they are.
        params: typer's parameters of the command.
    """
    written = {param.name: _as_written(param) for param in params}

    def option(found: re.Match[str]) -> str:
        name = found[1]
        return written.get(name) or written.get(_RENAMED.get(name, "")) or found[0]

    return _PARAMETER.sub(option, text)


def _as_written(param: Any) -> str:
    """The first long option of a parameter, or the word that `--help` has for an argument."""
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    return str(next((name for name in param.opts if name.startswith("--")), param.opts[0]))


def end_of_wrong_usage(error: TyperException) -> NoReturn:
    """Tell in one line what typer could not parse, and where to read how it is written."""
    text = _usage_text(error)
    if text:  # a group without a command has printed its help instead
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "wsss"
        print_error(f"{text.rstrip('.?')}: see `{command} --help`")
    sys.exit(error.exit_code)


def _usage_text(error: TyperException) -> str:
    from pydantic import ValidationError

    cause = error.__cause__
    if isinstance(cause, ValidationError) and isinstance(error, BadParameter) and error.param:
        option = error.param.get_error_hint().replace("'", "")
        return fault_text(option, cause.errors()[0])  # typer leaves out what was found
    text = error.format_message()
    return f"{text[:1].lower()}{text[1:]}"


def _leave(code: int, text: str) -> NoReturn:
    print_error(text)
    sys.exit(code)


def _drop_output() -> None:
    """Throw away what cannot be written, or the interpreter would try again and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM inside; no effect in other threads than the main one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
