"""What a command raises, as one line on stderr and an exit code.

0 done, 1 the user's input or environment, 2 wrong usage (typer's), 3 finished but some images
failed, 130 interrupted with all finished work kept.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from typer import BadParameter, TyperException

from ..errors import WsssError, fault_text
from ..runtime.backends.registry import BACKENDS
from .output import print_error

EXTRAS = {"torch": "train", "onnxscript": "export"}
EXTRAS |= {entry.package: entry.extra for entry in BACKENDS.values()}
"""Optional packages, and the extra that installs them."""


CONTINUES = "interrupted; what was finished is kept, the same command continues"


@contextmanager
def exit_codes(interrupted: str = CONTINUES) -> Iterator[None]:
    """Around a command; must be inside of typer, which has ways of its own with some of these.

    Args:
        interrupted: what Ctrl-C prints.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # a full disk shows here rather than when the interpreter ends
    except WsssError as error:
        _leave(1, str(error))
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
