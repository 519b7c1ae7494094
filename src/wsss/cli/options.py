"""Values that options of several commands take; typer refuses others with exit code 2."""

from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
