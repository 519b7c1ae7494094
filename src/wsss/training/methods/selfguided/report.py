"""Contact sheet of the self-guided network: its maps behind each step, and their labels."""

from collections.abc import Collection

from ....runtime.io.image_io import read_image, read_label_map
from ....runtime.io.score_maps import load_score_maps
from ....runtime.report.pictures import shrink
from ...data.image_set import Sample
from ...engine.run import Run
from ...report.page import (
    PICTURE_SIDE,
    Sheet,
    SheetRow,
    caption,
    class_legend,
    evenly,
    heat_cell,
    labels_cell,
)
from .train import STEPS

NUM_PICTURES = 8


def make_sheets(run: Run, finished: Collection[str]) -> list[Sheet]:
    """One sheet of training images where the run has made its final labels, else none."""
    if "labels" not in finished:
        return []
    samples = evenly(run.train_set.samples, NUM_PICTURES)
    return [
        Sheet(
            title="Maps behind each step",
            text=f"{len(samples)} of the {len(run.train_set.samples)} images in list "
            f"'{run.recipe.data.train_split}', by the final network, which is told which classes "
            "are in the image. A step that the recipe leaves out passes its maps on.",
            columns=[
                ("photo", ""),
                ("truth", "mask"),
                ("step 1", "class maps"),
                ("step 2", "agree with features"),
                ("step 3", "guided by the image"),
                ("label", "of step 3"),
            ],
            rows=[_row(run, sample) for sample in samples],
            legend=class_legend(run),
            has_scores=True,
        )
    ]


def _row(run: Run, sample: Sample) -> SheetRow:
    image, folder = read_image(sample.image_path), run.folder / "labels"
    truth = sample.load_mask() if sample.mask is not None else None
    label = read_label_map(folder / f"{sample.name}.png")
    cells = (
        shrink(image, PICTURE_SIDE),
        labels_cell(image, truth, "no mask"),
        *(heat_cell(image, load_score_maps(folder / s / f"{sample.name}.npz")) for s in STEPS),
        labels_cell(image, label, "not run"),
    )
    return SheetRow(sample.name, caption(run, sample), cells)
