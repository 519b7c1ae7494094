"""Errors that a user can mend.

Each message is one line: what was found, what was expected, what would work. Anything else that
is raised is our bug and keeps its traceback. The functions at the end turn the words of other
libraries, and values that a stranger wrote, into parts of such a line.
"""

import reprlib
from collections.abc import Mapping
from typing import Any


class WsssError(Exception):
    """Base of every error that the user's input or environment causes.

    The message is one line: what was found, what was expected, what would work. The subclasses are
    in `wsss.errors`: `ConfigError` (arguments and recipes), `DataError` (images, masks, labels),
    `ShapeError` (arrays), `ArtifactError` (runs, bundles and other files), `ServerError` with
    `DeadlineError`, and `MissingDependencyError`.
    """


class ConfigError(WsssError):
    """A recipe, an option or a combination of options is wrong."""


class DataError(WsssError):
    """An image set, an image, a mask or a label file cannot be used as it is."""


class ShapeError(WsssError):
    """An array or a grid has a shape that the operation does not take."""


class ArtifactError(WsssError):
    """A run, a checkpoint or another file written by a program cannot be used."""


class MissingDependencyError(WsssError):
    """An optional package is absent; the message holds the line that installs it."""


class ServerError(WsssError):
    """A server cannot be reached, has no room for more work, or stopped in the middle of it."""


class DeadlineError(ServerError):
    """A server took longer over one request than it was given."""


_LONGEST = 400
"""Characters of a foreign message that are kept; the rest repeats or lists source files."""
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


def one_line(message: BaseException | str) -> str:
    """Turn what another library says into a part of a line; an error without words gives its type.

    Control characters become spaces and long messages are cut, because the text may come from a
    stranger's file.
    """
    text = "".join(letter if letter.isprintable() else " " for letter in str(message))
    text = " ".join(text.split())
    if not text and isinstance(message, BaseException):
        text = type(message).__name__
    return _cut(text)


def short_repr(value: object) -> str:
    """Show a value that a stranger wrote: short, in one line, without control characters."""
    return _cut(_REPR.repr(value))


def fault_text(place: str, fault: Mapping[str, Any]) -> str:
    """Say in one line what pydantic found and what must be there instead.

    Args:
        place: the name of the key or option.
        fault: one of `ValidationError.errors()`.
    """
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if fault["type"] == "value_error":
        return f"{place}: {message}" if place else message
    return f"{place} is {fault['input']!r}, {message.replace('input should', 'must')}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
