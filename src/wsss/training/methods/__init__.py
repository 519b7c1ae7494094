"""The methods: the name of each folder here. To add one, edit this list and nothing else."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .contract import Method

METHODS = ("affinitynet", "irnet", "cian", "sec", "selfguided")


def open_method(name: str) -> "Method":
    """The method of a name in `METHODS`; its modules are imported when it is first asked for."""
    method: Method = import_module(f"{__name__}.{name}.method").METHOD
    return method
