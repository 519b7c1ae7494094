"""What pydantic finds wrong, in our words: for recipes, and for options of the command line."""

from collections.abc import Mapping
from typing import Any


def fault_text(place: str, fault: Mapping[str, Any]) -> str:
    """What was found and what must be, in one line.

    Args:
        place: name of the key or option.
        fault: one of `ValidationError.errors()`.
    """
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if fault["type"] == "value_error":
        return f"{place}: {message}" if place else message
    return f"{place} is {fault['input']!r}, {message.replace('input should', 'must')}"
