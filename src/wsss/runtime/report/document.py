"""A report as one self-contained HTML page: no scripts, no addresses, every picture inside.

Texts come in as they are and are escaped here; only `Page.body` is HTML already.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..io.files import atomic_write_bytes
from .charts import Chart, draw_chart, draw_key
from .pictures import Picture, data_uri, encode_jpeg
from .style import STYLE
from .text import escaped

# Should a name ever slip past the escaping, a browser still loads and runs nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Page:
    """A page, from top to bottom.

    Attributes:
        facts: names and values below the title.
        body: HTML.
    """

    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    body: str
    footer: str


def render_page(page: Page) -> str:
    """The page as text."""
    facts = "".join(f"<div><dt>{escaped(k)}</dt><dd>{escaped(v)}</dd></div>" for k, v in page.facts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(page.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escaped(page.title)}</h1>
<p class="lead">{escaped(page.lead)}</p>
<dl class="facts">{facts}</dl>
</header>
<main>
{page.body}
</main>
<footer>{escaped(page.footer)}</footer>
</body>
</html>
"""


def write_page(path: Path, text: str) -> None:
    """Write a rendered page, whole or not at all.

    Raises:
        ArtifactError: the disk does not take it.
    """
    atomic_write_bytes(path, text.encode("utf-8"))


@dataclass(frozen=True)
class Encoded:
    """A JPEG and its (height, width)."""

    data: bytes
    size: tuple[int, int]


def encoded(picture: Picture, quality: int = 88) -> Encoded:
    """A picture to stand in a page."""
    return Encoded(encode_jpeg(picture, quality), (picture.shape[0], picture.shape[1]))


def picture_cell(cell: Encoded | str, name: str) -> str:
    """A picture called `name`, or a text in the place of one that there is not."""
    if isinstance(cell, str):
        return f'<div class="absent">{escaped(cell)}</div>'
    height, width = cell.size
    source = data_uri(cell.data)
    return f'<img src="{source}" width="{width}" height="{height}" alt="{escaped(name)}">'


def legend_items(colours: Sequence[tuple[str, tuple[int, int, int]]]) -> str:
    """List items of names with their RGB colours, for `<ul class="legend">`."""
    return "".join(
        f'<li><i style="background:rgb({red},{green},{blue})"></i>{escaped(name)}</li>'
        for name, (red, green, blue) in colours
    )


def bar_cell(text: str | None, percent: float = 0.0) -> str:
    """Table cell of a figure with a bar beside it; None: a dash."""
    if text is None:
        return '<td class="absent"><div><span>&ndash;</span></div></td>'
    return f'<td><div><span>{escaped(text)}</span><i style="--w:{percent:.1f}%"></i></div></td>'


def chart_figure(chart: Chart) -> str:
    """A chart with its title and key, for `<div class="charts">`."""
    return (
        f'<figure class="card"><h3>{escaped(chart.title)}</h3>{draw_key(chart)}'
        f"{draw_chart(chart)}</figure>"
    )


def fold_out(title: str, text: str) -> str:
    """A long text that is shown on demand."""
    return (
        f'<details class="card"><summary>{escaped(title)}</summary>'
        f"<pre>{escaped(text)}</pre></details>"
    )
