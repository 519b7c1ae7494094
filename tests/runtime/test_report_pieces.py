"""What report pages are made of: charts to scale, texts that stay texts."""

import math
import re

import pytest
from report_page import read_page

from wsss.runtime.report.charts import (
    Chart,
    Curve,
    draw_chart,
    draw_key,
    draw_shares,
    nice_ticks,
    thin,
)
from wsss.runtime.report.document import Page, render_page
from wsss.runtime.report.text import escaped, format_count, format_seconds


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        (0.03, 0.97, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        (2, 2, (2,)),
        (-3, 120, (-50, 0, 50, 100, 150)),
        (1e-6, 5e-6, (1e-6, 2e-6, 3e-6, 4e-6, 5e-6)),
    ],
)
def test_ticks_are_round_and_enclose_the_values(
    low: float, high: float, ticks: tuple[float, ...]
) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_curves_are_drawn_to_scale() -> None:
    svg = draw_chart(Chart("t", "x", [Curve("a", [0, 5, 10], [0, 10, 0])]))
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", svg.split('class="line"')[1])
    (x0, y0), (x1, y1), (x2, y2) = [(float(x), float(y)) for x, y in points]
    assert x1 == pytest.approx((x0 + x2) / 2)
    assert y0 == y2
    assert y1 < y0  # upwards is smaller in SVG


@pytest.mark.parametrize("y", [[], [math.nan], [math.inf, math.nan]])
def test_a_chart_without_finite_points_says_so(y: list[float]) -> None:
    chart = Chart("t", "x", [Curve("a", [0.0] * len(y), y)])
    assert "no figures recorded" in draw_chart(chart)
    assert draw_key(chart) == '<ul class="key"></ul>'


@pytest.mark.parametrize("y", [[3.0], [3.0, 3.0]])
def test_constant_curves_and_single_points_have_places(y: list[float]) -> None:
    svg = draw_chart(Chart("t", "x", [Curve("a", list(range(len(y))), y)]))
    assert "nan" not in svg
    assert ("<circle" in svg) == (len(y) == 1)


def test_thinning_averages_neighbours() -> None:
    assert thin([0, 1, 2, 3, 4], [0, 2, 4, 6, 9], 3) == ([0.5, 2.5, 4], [1, 5, 9])
    assert thin([0, 1], [5, 6], 2) == ([0, 1], [5, 6])
    assert thin([], [], 2) == ([], [])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3599, "59 min 59 s"), (7380, "2 h 3 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_an_axis_from_zero() -> None:
    curve = Curve("a", [0, 1], [90, 100])
    above = draw_chart(Chart("t", "x", [curve]))
    assert ">0</text>" not in above.split('class="tick end"')[1]
    assert ">0</text>" in draw_chart(Chart("t", "x", [curve], from_zero=True)).split("grid")[1]


def test_a_bar_of_shares_is_whole() -> None:
    drawn = draw_shares("t<", [("read", 1.0), ("<net>", 3.0), ("none", 0.0)])
    pieces = re.findall(r'x="([\d.]+)" y="0" width="([\d.]+)"', drawn)
    assert [(float(x), float(width)) for x, width in pieces] == [(0, 130), (130, 390), (520, 0)]
    assert "&lt;net&gt; <b>75.0 %</b>" in drawn and 'aria-label="t&lt;"' in drawn


@pytest.mark.parametrize("parts", [[], [("a", 0.0)], [("a", math.nan)]])
def test_shares_of_nothing(parts: list[tuple[str, float]]) -> None:
    assert "no figures recorded" in draw_shares("t", parts)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<a href='x'>&\"", "&lt;a href=&#x27;x&#x27;&gt;&amp;&quot;"),
        ("\udcff\0\x1b[1m", "\\udcff\\x00\\x1b[1m"),
        ("\u202egnp\u2066", "\\u202egnp\\u2066"),
        ("tab\tline\nHä \u4e2d \U0001f600", "tab\tline\nHä \u4e2d \U0001f600"),
    ],
)
def test_texts_stay_texts(text: str, shown: str) -> None:
    assert escaped(text) == shown
    escaped(text).encode("utf-8")


def test_counts() -> None:
    assert (format_count(999), format_count(1234567)) == ("999", "1,234,567")


def test_a_page_of_hostile_texts() -> None:
    hostile = "</title></style><script>alert(1)</script>\udcff"
    page = render_page(Page(hostile, hostile, [(hostile, hostile)], "<p>body</p>", hostile))
    texts = read_page(page).texts
    shown = hostile.replace("\udcff", "\\udcff")
    assert texts.count(shown) == 6 and "body" in texts
