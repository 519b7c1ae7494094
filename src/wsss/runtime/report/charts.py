"""Line charts and bars of shares as SVG text; colours and fonts come from the page around them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .text import escaped, format_number

WIDTH, HEIGHT = 520, 250
"""Of the drawing in its own units; the page scales it."""
NUM_COLOURS = 6
"""Series classes `s0` to `s5` that the page gives colours to."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 36
_BAR = 34
"""Height of a bar of shares."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart; points that are not finite are left out.

    Attributes:
        dashed: drawn as a dashed line with dots, for values measured now and then.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False

    def points(self) -> list[tuple[float, float]]:
        """Finite points in order."""
        pairs = zip(self.x, self.y, strict=True)
        return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True)
class Chart:
    """Curves over one pair of axes.

    Attributes:
        from_zero: the upward axis begins at 0, whatever the values.
    """

    title: str
    x_label: str
    curves: Sequence[Curve]
    from_zero: bool = False


@dataclass(frozen=True)
class _Axis:
    """Values from `low` to `high` laid over `start` to `end` of the drawing."""

    ticks: Sequence[float]
    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def draw_chart(chart: Chart) -> str:
    """SVG of a chart; a chart without a single finite point says so."""
    points = [point for curve in chart.curves for point in curve.points()]
    if not points:
        return '<p class="empty">no figures recorded</p>'
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if chart.from_zero:
        ys.append(0.0)
    steps = nice_ticks(min(xs), max(xs))
    across = _Axis(steps, min(steps[0], min(xs)), max(xs), _LEFT, WIDTH - _RIGHT)
    if across.low == across.high:
        across = _Axis((across.low,), across.low - 1, across.high + 1, _LEFT, WIDTH - _RIGHT)
    ticks = nice_ticks(min(ys), max(ys))
    up = _Axis(ticks, min(ticks[0], min(ys)), max(ticks[-1], max(ys)), HEIGHT - _BOTTOM, _TOP)
    if up.low == up.high:
        up = _Axis(ticks, up.low - 1, up.high + 1, HEIGHT - _BOTTOM, _TOP)
    lines = [_curve(curve, index % NUM_COLOURS, across, up) for index, curve in _drawn(chart)]
    label = f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 4}" class="axis">'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(chart.title)}">'
        f"{_grid(across, up)}{label}{escaped(chart.x_label)}</text>{''.join(lines)}</svg>"
    )


def draw_key(chart: Chart) -> str:
    """Names of the curves with their colours and last values, as HTML."""
    items = [
        f'<li class="s{index % NUM_COLOURS}"><i{" class=dashed" if curve.dashed else ""}></i>'
        f"{escaped(curve.name)} <b>{format_number(curve.points()[-1][1])}</b></li>"
        for index, curve in _drawn(chart)
    ]
    return f'<ul class="key">{"".join(items)}</ul>'


def draw_shares(title: str, parts: Sequence[tuple[str, float]]) -> str:
    """One bar cut into parts, with a key of their shares, as HTML; where all are 0 it says so."""
    total = math.fsum(value for _, value in parts)
    if not total > 0:
        return '<p class="empty">no figures recorded</p>'
    left, pieces, items = 0.0, [], []
    for index, (name, value) in enumerate(parts):
        share, colour = value / total, f"s{index % NUM_COLOURS}"
        pieces.append(
            f'<rect class="{colour}" x="{left * WIDTH:.1f}" y="0" width="{share * WIDTH:.1f}" '
            f'height="{_BAR}"><title>{escaped(name)}</title></rect>'
        )
        items.append(f'<li class="{colour}"><i></i>{escaped(name)} <b>{100 * share:.1f} %</b></li>')
        left += share
    return (
        f'<ul class="key">{"".join(items)}</ul><svg viewBox="0 0 {WIDTH} {_BAR}" role="img" '
        f'aria-label="{escaped(title)}">{"".join(pieces)}</svg>'
    )


def nice_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """About `count` round numbers from at most `low` to at least `high`; one if both are equal."""
    if low == high:
        return (low,)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(index * step, 12) for index in range(first, last + 1))


def thin(x: Sequence[float], y: Sequence[float], limit: int) -> tuple[list[float], list[float]]:
    """At most `limit` points: the means of equally long runs of neighbours."""
    run = -(-len(x) // limit)
    if run <= 1:
        return list(x), list(y)
    starts = range(0, len(x), run)
    return (
        [math.fsum(x[i : i + run]) / len(x[i : i + run]) for i in starts],
        [math.fsum(y[i : i + run]) / len(y[i : i + run]) for i in starts],
    )


def _drawn(chart: Chart) -> list[tuple[int, Curve]]:
    return [(index, curve) for index, curve in enumerate(chart.curves) if curve.points()]


def _grid(across: _Axis, up: _Axis) -> str:
    parts = []
    for tick in up.ticks:
        y = up.place(tick)
        parts.append(
            f'<path class="grid" d="M{_LEFT} {y}H{WIDTH - _RIGHT}"/>'
            f'<text x="{_LEFT - 7}" y="{y + 4}" class="tick end">{format_number(tick)}</text>'
        )
    for tick in across.ticks:
        if across.low <= tick <= across.high:
            parts.append(
                f'<text x="{across.place(tick)}" y="{HEIGHT - _BOTTOM + 16}" class="tick">'
                f"{format_number(tick)}</text>"
            )
    return "".join(parts)


def _curve(curve: Curve, colour: int, across: _Axis, up: _Axis) -> str:
    placed = [(across.place(x), up.place(y)) for x, y in curve.points()]
    path = "L".join(f"{x} {y}" for x, y in placed)
    line = f'<path class="line{" dashed" if curve.dashed else ""}" d="M{path}"/>'
    dots = ""
    if curve.dashed or len(placed) == 1:
        dots = "".join(f'<circle cx="{x}" cy="{y}" r="3"/>' for x, y in placed)
    return f'<g class="s{colour}"><title>{escaped(curve.name)}</title>{line}{dots}</g>'
