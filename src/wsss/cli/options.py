"""Values that options of several commands take; typer refuses others with exit code 2."""

from typing import TYPE_CHECKING, Literal

from ..errors import ConfigError
from ..runtime.backends.registry import AUTO, BACKENDS, DEVICES

Device = Literal["auto", "cpu", "cuda"]

if TYPE_CHECKING:
    GraphDevice = str
    Backend = str
else:  # the choices come from the table of backends, which a type checker cannot read
    GraphDevice = Literal[(AUTO, *DEVICES)]
    # torch computes runs.
    Backend = Literal[(AUTO, "torch", *BACKENDS)]


def one_mode(mode: str | None, former: str | None, alias: str) -> str | None:
    """The value of `--mode`, or of the option that had its meaning before.

    Raises:
        ConfigError: both are given, with different values.
    """
    if mode is not None and former is not None and mode != former:
        raise ConfigError(f"{alias} is the former name of --mode: leave {alias} out")
    return mode or former


def refuse_shared_memory(is_given: bool) -> None:
    """Refuse `--shared-memory`, which is still parsed for one version.

    Raises:
        ConfigError: it was given.
    """
    if is_given:
        raise ConfigError("--shared-memory was removed, requests send bytes: leave it out")
