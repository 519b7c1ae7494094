"""How commands speak: results to stdout, progress and errors to stderr."""

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from ..runtime.io.progress import Progress, ProgressTask
from ..runtime.report.text import format_seconds

# Names of files and classes may hold `[b]` or `:cat:` and mean just that.
stdout = Console(highlight=False, markup=False, emoji=False)
stderr = Console(stderr=True, highlight=False, markup=False, emoji=False)

PLAIN_SECONDS = 15.0
"""Time between two progress lines where stderr is no terminal."""


def print_json(value: Any) -> None:
    """The one machine-readable object of a command: ASCII, figures that are no number as null."""
    sys.stdout.write(json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n")


def print_error(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write("wsss: " + " ".join(text.splitlines()) + "\n")


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars on a terminal, plain lines elsewhere."""
    if not stderr.is_terminal:
        yield PlainProgress()
        return
    columns = (
        TextColumn("{task.description:<16}", markup=False),
        BarColumn(),  # which alone gives way where the window is narrow
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    with _Bars(*columns, console=stderr) as bars:
        yield BarProgress(bars)


class PlainProgress(Progress):
    """A line when a piece of work starts and ends, and every few seconds between."""

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[ProgressTask]:
        """See `Progress.task`."""
        task = _PlainTask(name, total, done)
        yield task
        task.show()

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        sys.stderr.write(text + "\n")


class _PlainTask(ProgressTask):
    def __init__(self, name: str, total: int, done: int) -> None:
        self.name, self.total, self.done, self.first = name, total, done, done
        self.figures: dict[str, float] = {}
        self.shares = ""
        self.shown = self.started = time.monotonic()

    def advance(self, count: int = 1, **figures: float) -> None:
        """See `ProgressTask.advance`."""
        self.done += count
        self.figures = figures
        # The end is shown by the task itself.
        if self.done < self.total and time.monotonic() - self.shown > PLAIN_SECONDS:
            self.show()

    def divide(self, shares: Mapping[str, float]) -> None:
        """See `ProgressTask.divide`."""
        self.shares = _shares(shares)

    def show(self) -> None:
        """Write the state as one line."""
        self.shown = time.monotonic()
        seconds, done = self.shown - self.started, self.done - self.first
        line = f"{self.name}: {self.done}/{self.total} after {seconds:.0f} s"
        if done > 0 and self.done < self.total:
            line += f", {format_seconds(seconds / done * (self.total - self.done))} left"
        for told in (_text(self.figures), self.shares):
            line += f"; {told}" if told else ""
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


class _Bars(RichProgress):
    """Below its bars they tell where the time went, for which a row has no room."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["shares"]:
                yield Text(task.fields["shares"], overflow="ellipsis", no_wrap=True)


class BarProgress(Progress):
    """One bar for each piece of work."""

    def __init__(self, bars: RichProgress) -> None:
        self.bars = bars

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[ProgressTask]:
        """See `Progress.task`."""
        bar = self.bars.add_task(name, total=total, completed=done, figures="", shares="")
        yield _BarTask(self.bars, bar)

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self.bars.console.print(text, soft_wrap=True)


class _BarTask(ProgressTask):
    def __init__(self, bars: RichProgress, bar: TaskID) -> None:
        self.bars, self.bar = bars, bar

    def advance(self, count: int = 1, **figures: float) -> None:
        """See `ProgressTask.advance`."""
        self.bars.update(self.bar, advance=count, figures=_text(figures))

    def divide(self, shares: Mapping[str, float]) -> None:
        """See `ProgressTask.divide`."""
        self.bars.update(self.bar, shares=_shares(shares))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
