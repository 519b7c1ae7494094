"""The table of a comparison as a CSV file: mIoU by stage and class, time and memory."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...runtime.io.files import atomic_write_bytes
from .compare import Comparison

COLUMNS = (
    "recipe",
    "method",
    "backbone",
    "stage",
    "miou",
    "published",
    "published_source",
    "list_name",
    "images",
    "background",
    "image_labels_used",
    "seconds",
    "host_mib",
    "gpu_mib",
)


def write_compare_table(comparison: Comparison, path: Path) -> Path:
    """Write a line for each mIoU, then one for each stage without; returns the path.

    Behind `COLUMNS` stands the IoU of each class in per cent, as `iou NAME`. What was not measured
    or recorded is empty.
    """
    names = ("background", *comparison.images.classes)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*COLUMNS, *(f"iou {name}" for name in names)])
    for cells, classes in _lines(comparison):
        writer.writerow([*(cells.get(key) for key in COLUMNS), *map(classes.get, names)])
    atomic_write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))
    return path


def _lines(
    comparison: Comparison,
) -> Iterator[tuple[Mapping[str, object], Mapping[str, float | None]]]:
    """Cells by column, and IoU by class."""
    measured = {(row.recipe, row.stage) for row in comparison.rows}
    for row in comparison.rows:
        yield vars(row), row.classes
    for cost in comparison.costs():
        if (cost.recipe, cost.stage) not in measured:
            recipe = comparison.runs[cost.recipe].run.recipe
            names = {"method": recipe.method, "backbone": recipe.backbone.name}
            yield vars(cost) | names, {}
