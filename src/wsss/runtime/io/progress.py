"""How long-running functions tell where they are; the command line turns it into bars."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Progress:
    """Receiver of progress that shows nothing; `cli` has one that draws."""

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator["ProgressTask"]:
        """A piece of work of `total` units, of which `done` were finished before."""
        yield ProgressTask()

    def note(self, text: str) -> None:
        """A line worth telling the user, such as a stage that is up to date."""


class ProgressTask:
    """One running piece of work."""

    def advance(self, count: int = 1, **figures: float) -> None:
        """`count` more units are done; figures such as `loss` may be shown beside the bar."""

    def divide(self, shares: Mapping[str, float]) -> None:
        """Where the time went so far: 0 to 1 by name, shown below the bar."""


SILENT = Progress()
