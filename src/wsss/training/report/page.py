"""The page of a run, around what `runtime/report` gives all pages.

Plain data in, text out; `predict/run_report.py` collects what a run has to show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...runtime.io.palette import voc_palette
from ...runtime.io.score_maps import ScoreMaps
from ...runtime.report.charts import Chart
from ...runtime.report.document import (
    Page,
    bar_cell,
    chart_figure,
    encoded,
    fold_out,
    legend_items,
    picture_cell,
    render_page,
)
from ...runtime.report.pictures import Picture, draw_heat, draw_labels, shrink, shrink_labels
from ...runtime.report.text import escaped
from ..data.image_set import Sample
from ..engine.run import Run

Legend = list[tuple[str, tuple[int, int, int]]]
PICTURE_SIDE = 224
"""Longer side of a picture in pixels."""


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
    """Contact sheet; each column has a name and a note.

    Attributes:
        legend: class names and their RGB colours.
        has_scores: some pictures show scores in one colour, which the legend then tells.
        keys: further items of the legend, each with a small picture.
    """

    title: str
    text: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[SheetRow]
    legend: Sequence[tuple[str, tuple[int, int, int]]]
    has_scores: bool = False
    keys: Sequence[tuple[str, Picture]] = ()


@dataclass(frozen=True)
class IouColumn:
    """Per-class IoU of one kind of prediction in per cent.

    Attributes:
        iou: by class name, with the background; None where the class does not occur.
            An empty mapping marks predictions that were not made; the note says why.
        images: how many were measured, of the list `list_name`.
        background: the rule that made it, see `EvalReport`.
        image_labels_used: None where that is not known.
    """

    name: str
    note: str
    miou: float | None = None
    iou: Mapping[str, float | None] = field(default_factory=dict)
    images: int | None = None
    list_name: str | None = None
    background: str | None = None
    image_labels_used: bool | None = None


@dataclass(frozen=True)
class Report:
    """A page, from top to bottom."""

    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    stages: Sequence[StageCard]
    sheets: Sequence[Sheet]
    classes: Sequence[str]
    iou: Sequence[IouColumn]
    charts: Sequence[Chart]
    recipe: str
    footer: str


def render_report(report: Report) -> str:
    """The page as text; all names are escaped."""
    body = f"""<h2>Stages</h2>
<ul class="stages">{"".join(_stage(card) for card in report.stages)}</ul>
{"".join(sheet_section(sheet) for sheet in report.sheets)}
{iou_table(report.classes, report.iou)}
{_charts(report.charts)}
{fold_out("Recipe", report.recipe)}"""
    return render_page(Page(report.title, report.lead, report.facts, body, report.footer))


def _stage(card: StageCard) -> str:
    if card.time is None:
        big = '<div class="big none">not run</div>'
    elif card.headline is None:
        big = '<div class="big none">no masks to measure by</div>'
    else:
        value, unit = card.headline
        big = f'<div class="big">{escaped(value)} <small>{escaped(unit)}</small></div>'
    rows = "".join(f"<dt>{escaped(k)}</dt><dd>{escaped(v)}</dd>" for k, v in card.figures.items())
    time = f'<p class="time">{escaped(card.time)}</p>' if card.time else ""
    return (
        f'<li class="card"><h3>{escaped(card.name)}</h3><p>{escaped(card.text)}</p>'
        f"{big}<dl>{rows}</dl>{time}</li>"
    )


def sheet_section(sheet: Sheet) -> str:
    """A contact sheet below its title."""
    heads = "".join(
        f"<th>{escaped(name)}<small>{escaped(note)}</small></th>" for name, note in sheet.columns
    )
    rows = "".join(_sheet_row(row, len(sheet.columns)) for row in sheet.rows)
    keys = "".join(
        f"<li>{picture_cell(encoded(picture), name)}{escaped(name)}</li>"
        for name, picture in sheet.keys
    )
    heat = '<li class="heat"><i></i>score 0 to 1</li>' if sheet.has_scores else ""
    return f"""<h2>{escaped(sheet.title)}</h2>
<p>{escaped(sheet.text)}</p>
<ul class="legend">{legend_items(sheet.legend)}{heat}{keys}</ul>
<div class="card scroll"><table class="sheet"><thead><tr>{heads}</tr></thead>
<tbody>{rows}</tbody></table></div>"""


def _sheet_row(row: SheetRow, num_columns: int) -> str:
    cells = "".join(f"<td>{_cell(cell, row.name)}</td>" for cell in row.cells)
    caption = f"<b>{escaped(row.name)}</b> {escaped(row.caption)}"
    return f'<tr class="name"><td colspan="{num_columns}">{caption}</td></tr>\n<tr>{cells}</tr>\n'


def _cell(cell: Picture | str, name: str) -> str:
    return picture_cell(cell if isinstance(cell, str) else encoded(cell), name)


def iou_table(
    classes: Sequence[str], columns: Sequence[IouColumn], title: str = "IoU of each class"
) -> str:
    """Per-class IoU below its title."""
    heads = "".join(
        f"<th>{escaped(column.name)}<small>{escaped(column.note)}</small></th>"
        for column in columns
    )
    means = "".join(_iou_cell(column.miou) for column in columns)
    rows = "".join(
        f"<tr><th>{escaped(name)}</th>"
        + "".join(_iou_cell(column.iou.get(name)) for column in columns)
        + "</tr>\n"
        for name in ("background", *classes)
    )
    return f"""<h2>{escaped(title)}</h2>
<p>Per cent of the union of truth and prediction, counted in pixels over the whole list.
A dash: not measured, or the class does not occur.</p>
<div class="card scroll"><table class="bars"><thead><tr><th></th>{heads}</tr></thead>
<tbody><tr class="total"><th>mean</th>{means}</tr>
{rows}</tbody></table></div>"""


def _iou_cell(value: float | None) -> str:
    return bar_cell(None) if value is None else bar_cell(f"{value:.1f}", value)


def _charts(charts: Sequence[Chart]) -> str:
    if not charts:
        return ""
    figures = "".join(chart_figure(chart) for chart in charts)
    return f'<h2>Training</h2>\n<div class="charts">{figures}</div>'


def class_legend(run: Run) -> Legend:
    """The classes and their colours."""
    return [
        (name, (int(red), int(green), int(blue)))
        for name, (red, green, blue) in zip(run.images.classes, voc_palette()[1:], strict=False)
    ]


def caption(run: Run, sample: Sample) -> str:
    """Which classes an image shows."""
    if sample.labels is None:
        return "labels not known"
    return ", ".join(run.images.classes[index] for index in sample.labels) or "no class"


def labels_picture(
    image: Picture, labels: NDArray[np.uint8], ids: NDArray[np.uint16] | None = None
) -> Picture:
    """A label map over its image, with lines between instances where their ids are given."""
    small = None if ids is None else shrink_labels(ids, PICTURE_SIDE)
    below = shrink(image, PICTURE_SIDE)
    return draw_labels(below, shrink_labels(labels, PICTURE_SIDE), ids=small)


def labels_cell(image: Picture, labels: NDArray[np.uint8] | None, absent: str) -> Picture | str:
    """A label map over its image, or why there is none."""
    return absent if labels is None else labels_picture(image, labels)


def heat_cell(image: Picture, maps: ScoreMaps | None) -> Picture | str:
    """Scores over their image, in one colour."""
    if maps is None:
        return "not run"
    scores = maps.scores
    if maps.background is not None:
        # Beside a walked background the absolute height says little, the share of it does.
        total = scores.sum(0) + maps.background
        scores = scores / np.maximum(total, 1e-6)
    return draw_heat(shrink(image, PICTURE_SIDE), scores)


def evenly(samples: Sequence[Sample], count: int) -> tuple[Sample, ...]:
    """At most `count` samples, spread over the whole list, in its order."""
    if len(samples) <= count:
        return tuple(samples)
    return tuple(samples[index * len(samples) // count] for index in range(count))
