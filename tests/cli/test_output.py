"""How progress reads, on a terminal and where there is none."""

import io
import re

import pytest
from rich.console import Console

from wsss.cli import output

SHARES = {"read": 0.056, "network": 0.9, "encode": 0.02, "write": 0.02, "commit": 0.004}
TOLD = "read 6 %, network 90 %, encode 2 %, write 2 %, commit 0 %, network idle 12 %"


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock shows, to be set."""
    now = [1000.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines(seconds: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with output.PlainProgress().task("label", 1000, done=200) as task:
        seconds[0] += 10
        task.advance(40, failed=1)  # soon after the start
        seconds[0] += 10
        task.divide(SHARES | {"network idle": 0.12})
        task.advance(40, **{"failed": 3, "images/s": 4.0})
        seconds[0] += 100
        task.advance(720, **{"failed": 5, "images/s": 6.6667})
    assert capsys.readouterr().err.splitlines() == [
        f"label: 280/1000 after 20 s, 3 min 0 s left; failed 3 images/s 4; {TOLD}",
        f"label: 1000/1000 after 120 s; failed 5 images/s 6.667; {TOLD}",
    ]


def test_a_plain_line_without_figures(
    seconds: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with output.PlainProgress().task("images", 2) as task:
        task.advance(2)
    assert capsys.readouterr().err == "images: 2/2 after 0 s\n"


@pytest.mark.parametrize("total", [1000, 12_345_678])
def test_bars_fit_80_columns(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row with rate, time left and failures, and below it where the time goes, none cut."""
    terminal = Console(
        file=io.StringIO(), force_terminal=True, width=80, color_system=None, legacy_windows=False
    )
    monkeypatch.setattr(output, "stderr", terminal)
    with output.progress() as shown, shown.task("label", total, done=total // 2) as task:
        task.divide(SHARES | {"network idle": 0.12})
        task.advance(total // 4, **{"failed": 1234, "images/s": 123.4})
    written = terminal.file
    assert isinstance(written, io.StringIO)
    *_, row, shares, _ = re.split(r"\x1b\[2K|\n", written.getvalue())
    assert f"{total // 2 + total // 4}/{total}" in row
    assert "failed 1234 images/s 123.4" in row and "…" not in row
    assert len(row) <= 80 and row.startswith("label") and "━" in row
    assert shares.startswith(TOLD)
