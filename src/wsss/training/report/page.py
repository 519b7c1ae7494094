"""A report as one self-contained HTML page: no scripts, no addresses, every picture inside.

Plain data in, text out; what a run has to show is collected in `run.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from ...runtime.pictures import Picture, data_uri, encode_jpeg
from .charts import Chart, draw_chart, draw_key
from .style import STYLE

JPEG_QUALITY = 88
# Should a name ever slip past the escaping, a browser still loads and runs nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class StageCard:
    """What one stage measured.

    Attributes:
        headline: the figure to show large with its unit, or None.
        figures: further names and values, ready to show.
        time: how long it took, or None where the stage has not run.
    """

    name: str
    text: str
    headline: tuple[str, str] | None = None
    figures: Mapping[str, str] = field(default_factory=dict)
    time: str | None = None


@dataclass(frozen=True)
class SheetRow:
    """Pictures of one image; a text takes the place of a picture that there is not."""

    name: str
    caption: str
    cells: Sequence[Picture | str]


@dataclass(frozen=True)
class Sheet:
    """Contact sheet; each column has a name and a note."""

    text: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[SheetRow]
    legend: Sequence[tuple[str, tuple[int, int, int]]]
    """Class names and their RGB colours."""


@dataclass(frozen=True)
class IouColumn:
    """Per-class IoU of one kind of prediction in per cent.

    Attributes:
        iou: by class name, with the background; None where the class does not occur.
            An empty mapping marks predictions that were not made; the note says why.
    """

    name: str
    note: str
    miou: float | None = None
    iou: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A page, from top to bottom."""

    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    stages: Sequence[StageCard]
    sheet: Sheet
    classes: Sequence[str]
    iou: Sequence[IouColumn]
    charts: Sequence[Chart]
    recipe: str
    footer: str


def render_report(report: Report) -> str:
    """The page as text; all names are escaped."""
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in report.facts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(report.title)}</h1>
<p class="lead">{escape(report.lead)}</p>
<dl class="facts">{facts}</dl>
</header>
<main>
<h2>Stages</h2>
<ul class="stages">{"".join(_stage(card) for card in report.stages)}</ul>
{_sheet(report.sheet)}
{_iou_table(report.classes, report.iou)}
{_charts(report.charts)}
<details class="card"><summary>Recipe</summary><pre>{escape(report.recipe)}</pre></details>
</main>
<footer>{escape(report.footer)}</footer>
</body>
</html>
"""


def _stage(card: StageCard) -> str:
    if card.time is None:
        big = '<div class="big none">not run</div>'
    elif card.headline is None:
        big = '<div class="big none">no masks to measure by</div>'
    else:
        value, unit = card.headline
        big = f'<div class="big">{escape(value)} <small>{escape(unit)}</small></div>'
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in card.figures.items())
    time = f'<p class="time">{escape(card.time)}</p>' if card.time else ""
    return (
        f'<li class="card"><h3>{escape(card.name)}</h3><p>{escape(card.text)}</p>'
        f"{big}<dl>{rows}</dl>{time}</li>"
    )


def _sheet(sheet: Sheet) -> str:
    colours = "".join(
        f'<li><i style="background:rgb({red},{green},{blue})"></i>{escape(name)}</li>'
        for name, (red, green, blue) in sheet.legend
    )
    heads = "".join(
        f"<th>{escape(name)}<small>{escape(note)}</small></th>" for name, note in sheet.columns
    )
    rows = "".join(_sheet_row(row, len(sheet.columns)) for row in sheet.rows)
    return f"""<h2>Pictures</h2>
<p>{escape(sheet.text)}</p>
<ul class="legend">{colours}<li class="heat"><i></i>score 0 to 1</li></ul>
<div class="card scroll"><table class="sheet"><thead><tr>{heads}</tr></thead>
<tbody>{rows}</tbody></table></div>"""


def _sheet_row(row: SheetRow, num_columns: int) -> str:
    cells = "".join(f"<td>{_cell(cell, row.name)}</td>" for cell in row.cells)
    caption = f"<b>{escape(row.name)}</b> {escape(row.caption)}"
    return f'<tr class="name"><td colspan="{num_columns}">{caption}</td></tr>\n<tr>{cells}</tr>\n'


def _cell(cell: Picture | str, name: str) -> str:
    if isinstance(cell, str):
        return f'<div class="absent">{escape(cell)}</div>'
    height, width = cell.shape[:2]
    source = data_uri(encode_jpeg(cell, JPEG_QUALITY))
    return f'<img src="{source}" width="{width}" height="{height}" alt="{escape(name)}">'


def _iou_table(classes: Sequence[str], columns: Sequence[IouColumn]) -> str:
    heads = "".join(
        f"<th>{escape(column.name)}<small>{escape(column.note)}</small></th>" for column in columns
    )
    means = "".join(_iou_cell(column.miou) for column in columns)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(_iou_cell(column.iou.get(name)) for column in columns)
        + "</tr>\n"
        for name in ("background", *classes)
    )
    return f"""<h2>IoU of each class</h2>
<p>Per cent of the union of truth and prediction, counted in pixels over the whole list.
A dash: not measured, or the class does not occur.</p>
<div class="card scroll"><table class="iou"><thead><tr><th></th>{heads}</tr></thead>
<tbody><tr><th>mean</th>{means}</tr>
{rows}</tbody></table></div>"""


def _iou_cell(value: float | None) -> str:
    if value is None:
        return '<td class="absent"><div><span>&ndash;</span></div></td>'
    return f'<td><div><span>{value:.1f}</span><i style="--w:{value:.1f}%"></i></div></td>'


def _charts(charts: Sequence[Chart]) -> str:
    if not charts:
        return ""
    figures = "".join(
        f'<figure class="card"><h3>{escape(chart.title)}</h3>{draw_key(chart)}'
        f"{draw_chart(chart)}</figure>"
        for chart in charts
    )
    return f'<h2>Training</h2>\n<div class="charts">{figures}</div>'
