"""The page of a comparison: what every recipe measured, and the same photographs for all."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.io.image_io import read_image, read_label_map
from ...runtime.report.document import Page, bar_cell, render_page, write_page
from ...runtime.report.pictures import Picture, shrink
from ...runtime.report.text import escaped, format_count, format_seconds
from ...version import __version__
from ..data.image_set import Sample
from ..predict.run_view import RunView, circumstances
from ..report.page import (
    PICTURE_SIDE,
    Sheet,
    SheetRow,
    caption,
    class_legend,
    evenly,
    iou_table,
    labels_cell,
    sheet_section,
)
from .compare import CompareRow, Comparison, StageCost

INSTANCE_FIGURES = {
    "cam_ap50": "AP50 of connected parts of CAMs",
    "boundary_ap50": "AP50 with boundaries",
    "ap50": "AP50 of instances",
    "ap70": "AP70 of instances",
}
Labels = NDArray[np.uint8]


def write_compare_page(comparison: Comparison, path: Path, *, pictures: int = 8) -> Path:
    """Write the page of a comparison as one HTML file; returns its path.

    Args:
        pictures: photographs of each sheet; 0 leaves them out, so that figures alone are shown.
    """
    runs = comparison.runs
    body = "".join(
        (
            _miou_table(comparison.rows, list(runs)),
            _instances_table(comparison),
            _cost_table(comparison),
            *(map(sheet_section, _sheets(comparison, pictures)) if pictures else ()),
            *_class_tables(comparison),
        )
    )
    images = comparison.images
    facts = [
        ("Images", f"{images.root.name}: {len(images.samples)}"),
        ("Classes", str(len(images.classes))),
        *((name, _network(view)) for name, view in runs.items()),
    ]
    lead = "Methods from image-level labels to a segmenter, on the same images."
    footer = f"Written by wsss {__version__}. Source of the images: {images.layout}."
    write_page(path, render_page(Page("Comparison", lead, facts, body, footer)))
    return path


def _network(view: RunView) -> str:
    recipe = view.run.recipe
    return f"{recipe.method}, {recipe.backbone.name}"


def _miou_table(rows: Sequence[CompareRow], names: Sequence[str]) -> str:
    stages = list(dict.fromkeys(row.stage for row in rows if row.stage != "segmenter"))
    lines = []
    for stage in (*stages, "segmenter"):
        found = {row.recipe: row for row in rows if row.stage == stage}
        note = _circumstances(list(found.values()))
        lines.append(_bars(stage, [_miou(found.get(name)) for name in names], note))
        published = [found[name].published if name in found else None for name in names]
        if any(value is not None for value in published):
            lines.append(_bars(f"{stage}, published on VOC 2012", published))
    return f"""<h2>mIoU</h2>
<p>Per cent. A dash: the method has no such step, or it was not measured.</p>
{_table(names, lines)}{_sources(rows)}"""


def _circumstances(rows: Sequence[CompareRow]) -> str:
    """On what they were measured, by recipe where that differs."""
    by_note: dict[str, list[str]] = {}
    for row in rows:
        note = "when it was trained"
        if row.list_name is not None:
            note = circumstances(
                row.list_name, f"{row.images}", row.image_labels_used, row.background
            )
        by_note.setdefault(note, []).append(row.recipe)
    if len(by_note) < 2:
        return "".join(by_note)
    return "; ".join(f"{', '.join(recipes)}: {note}" for note, recipes in by_note.items())


def _sources(rows: Sequence[CompareRow]) -> str:
    """Where the published figures stand."""
    lines = [
        f"{row.stage} of {row.recipe} ({row.method}, {row.backbone}): {row.published_source}"
        for row in rows
        if row.published_source is not None
    ]
    items = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    return (
        f"\n<p>Published, of the same method and backbone:</p>\n<ul>{items}</ul>" if items else ""
    )


def _instances_table(comparison: Comparison) -> str:
    found = comparison.instances()
    if not any(found.values()):
        return ""
    lines = [
        _bars(text, [figures.get(key) for figures in found.values()])
        for key, text in INSTANCE_FIGURES.items()
    ]
    return f"""<h2>Instances</h2>
<p>Average precision in per cent, training images, image-level labels given.</p>
{_table(list(found), lines)}"""


def _cost_table(comparison: Comparison) -> str:
    names, costs = list(comparison.runs), comparison.costs()
    lines = []
    for stage in dict.fromkeys(s for view in comparison.runs.values() for s in view.stages):
        found = {cost.recipe: cost for cost in costs if cost.stage == stage}
        cells = "".join(f"<td>{_cost(found.get(name))}</td>" for name in names)
        lines.append(f"<tr><th>{escaped(stage)}</th>{cells}</tr>")
    totals = [sum(cost.seconds or 0 for cost in costs if cost.recipe == name) for name in names]
    cells = "".join(f"<td>{format_seconds(total)}</td>" for total in totals)
    lines.append(f'<tr class="total"><th>all</th>{cells}</tr>')
    return f"""<h2>Time and memory</h2>
<p>Of each stage where it was first run. Memory: the most of its process, libraries included; on a
GPU the most of its tensors.</p>
{_table(names, lines)}"""


def _cost(cost: StageCost | None) -> str:
    if cost is None:
        return "&ndash;"
    parts = [] if cost.seconds is None else [format_seconds(cost.seconds)]
    parts += [] if cost.host_mib is None else [f"{format_count(cost.host_mib)} MiB"]
    parts += [] if cost.gpu_mib is None else [f"GPU {format_count(cost.gpu_mib)} MiB"]
    return ", ".join(parts) or "&ndash;"


def _class_tables(comparison: Comparison) -> list[str]:
    """One for each kind of prediction, with a column for each run that makes it."""
    tables = []
    kinds = [kind for found in comparison.columns.values() for kind in found]
    for kind in dict.fromkeys([*(kind for kind in kinds if kind != "segmenter"), "segmenter"]):
        found = {name: made[kind] for name, made in comparison.columns.items() if kind in made}
        columns = [replace(column, name=name) for name, column in found.items()]
        title = next(column.name for column in found.values())
        tables.append(iou_table(comparison.images.classes, columns, f"IoU of each class: {title}"))
    return tables


def _table(names: Sequence[str], lines: Sequence[str]) -> str:
    heads = "".join(f"<th>{escaped(name)}</th>" for name in names)
    return (
        f'<div class="card scroll"><table class="bars"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _bars(name: str, values: Sequence[float | None], note: str = "") -> str:
    cells = [bar_cell(None) if v is None else bar_cell(f"{v:.1f}", v) for v in values]
    head = escaped(name) + (f"<small>{escaped(note)}</small>" if note else "")
    return f"<tr><th>{head}</th>{''.join(cells)}</tr>"


def _miou(row: CompareRow | None) -> float | None:
    return row.miou if row else None


def _sheets(comparison: Comparison, pictures: int) -> list[Sheet]:
    """Segmenters on validation images, pseudo labels on training images."""
    runs = comparison.runs.values()
    first = next(iter(runs)).run
    sheets = []
    if first.val_set is not None:
        sheets.append(
            _sheet(
                comparison,
                "Segmenters",
                f"Images of list '{first.recipe.data.val_split}'; no labels were given.",
                evenly(first.val_set.samples, pictures),
                "segmenter",
                _segment,
            )
        )
    if any("labels" in view.stages for view in runs):
        sheets.append(
            _sheet(
                comparison,
                "Pseudo labels",
                f"Images of list '{first.recipe.data.train_split}'.",
                evenly(first.train_set.samples, pictures),
                "labels",
                _pseudo_label,
            )
        )
    return sheets


def _sheet(
    comparison: Comparison,
    title: str,
    text: str,
    samples: Sequence[Sample],
    stage: str,
    label: Callable[[RunView, Sample, Picture], Labels | None],
) -> Sheet:
    runs = comparison.runs
    run = next(iter(runs.values())).run
    rows = []
    with run.progress.task(title.lower(), len(samples)) as task:
        for sample in samples:
            image = read_image(sample.image_path)
            truth = sample.load_mask() if sample.mask is not None else None
            cells = [shrink(image, PICTURE_SIDE), labels_cell(image, truth, "no mask")]
            for view in runs.values():
                absent = "not run" if stage in view.stages else "no such step"
                cells.append(labels_cell(image, label(view, sample, image), absent))
            rows.append(SheetRow(sample.name, caption(run, sample), cells))
            task.advance()
    columns = [("photo", ""), ("truth", "mask"), *((name, "") for name in runs)]
    return Sheet(title, text, columns, rows, class_legend(run))


def _segment(view: RunView, sample: Sample, image: Picture) -> Labels | None:
    if "segmenter" not in view.finished or view.predictor is None:
        return None
    return view.predictor.recipe_label(image, None, "segmenter")


def _pseudo_label(view: RunView, sample: Sample, image: Picture) -> Labels | None:
    path = view.run.folder / "labels" / f"{sample.name}.png"
    return read_label_map(path) if path.is_file() else None
