"""Contact sheet of a run: what each stage makes of a fixed sample of images."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from ...runtime.io.image_io import read_image, read_label_map
from ...runtime.io.score_maps import ScoreMaps, load_score_maps
from ...runtime.refine.pseudo_labels import label_from_scores
from ...runtime.report.pictures import Picture, shrink
from ..data.image_set import Sample
from ..engine.run import Run
from ..methods.contract import Method
from ..recipe.recipe import WalkRecipe
from ..report.cells import (
    PICTURE_SIDE,
    caption,
    class_legend,
    evenly,
    heat_cell,
    labels_cell,
)
from ..report.page import Sheet, SheetRow
from .run_predictor import RunPredictor

NUM_PICTURES = 8


def make_sheet(
    run: Run, method: Method, finished: Collection[str], predictor: RunPredictor | None
) -> Sheet:
    """Pictures of validation images where the classifier can be applied, else of training images.

    Args:
        finished: names of the stages that have run.
        predictor: the run's networks, None where there are none.
    """
    painter = _Painter(run, method, finished, predictor)
    chosen, split = run.train_set, run.recipe.data.train_split
    walks = "walk" in method.modes
    # Without a walk pseudo labels are what was stored, of training images alone.
    can_show_any = painter.can_apply("cam") and (walks or not method.has_label_column)
    if run.val_set is not None and can_show_any:
        chosen, split = run.val_set, run.recipe.data.val_split
    samples = evenly(chosen.samples, NUM_PICTURES)
    rows = []
    with run.progress.task("pictures", len(samples)) as task:
        for sample in samples:
            rows.append(painter.row(sample))
            task.advance()
    told = "CAM, walk and pseudo label are" if walks else "The CAM is"
    made_of = "from the walk" if walks else "that was learnt"
    return Sheet(
        title="Pictures",
        text=f"{len(samples)} of the {len(chosen.samples)} images in list '{split}'. {told} told "
        "which classes are in the image; the segmenter is not.",
        columns=[
            ("photo", ""),
            ("truth", "mask"),
            ("CAM", "score"),
            *([("walk", "score")] if walks else []),
            *([("pseudo label", made_of)] if method.has_label_column else []),
            ("segmenter", "from the photo alone"),
        ],
        rows=rows,
        legend=class_legend(run),
        has_scores=True,
    )


class _Painter:
    """Pictures of an image: stored results where there are any, else the networks are applied."""

    def __init__(
        self,
        run: Run,
        method: Method,
        finished: Collection[str],
        predictor: RunPredictor | None,
    ) -> None:
        self.run, self.method = run, method
        self.finished, self.predictor = finished, predictor

    def can_apply(self, stage: str) -> bool:
        return stage in self.finished and self.predictor is not None and self.predictor.has(stage)

    def row(self, sample: Sample) -> SheetRow:
        image = read_image(sample.image_path)
        cam = self._cam(sample, image)
        walk = self._walk(sample, image)
        label = self._pseudo_label(sample, image, walk)
        truth = sample.load_mask() if sample.mask is not None else None
        cells = (
            shrink(image, PICTURE_SIDE),
            labels_cell(image, truth, "no mask"),
            heat_cell(image, cam),
            *([heat_cell(image, walk)] if "walk" in self.method.modes else []),
            *([labels_cell(image, label, "not run")] if self.method.has_label_column else []),
            labels_cell(image, self._segment(image), "not run"),
        )
        return SheetRow(sample.name, caption(self.run, sample), cells)

    def _cam(self, sample: Sample, image: Picture) -> ScoreMaps | None:
        path = self.run.folder / "cam" / "scores" / f"{sample.name}.npz"
        if "cam" in self.finished and path.is_file():
            return load_score_maps(path)
        if self.predictor is None or not self.can_apply("cam"):
            return None
        return self.predictor.score_maps(image, sample.labels, "cam")

    def _walk(self, sample: Sample, image: Picture) -> ScoreMaps | None:
        needed = self.method.modes.get("walk")
        if "labels" not in self.finished or needed is None:
            return None
        path = self.run.folder / "labels" / "scores" / f"{sample.name}.npz"
        if path.is_file():
            return load_score_maps(path)
        if self.predictor is None or not all(self.can_apply(stage) for stage in needed):
            return None
        return self.predictor.score_maps(image, sample.labels, "walk")

    def _pseudo_label(
        self, sample: Sample, image: Picture, walk: ScoreMaps | None
    ) -> NDArray[np.uint8] | None:
        path = self.run.folder / "labels" / f"{sample.name}.png"
        if "labels" in self.finished and path.is_file():
            return read_label_map(path)
        recipe = self.run.recipe
        if walk is None or not isinstance(recipe, WalkRecipe):
            return None
        section = recipe.walk
        return label_from_scores(
            walk,
            threshold=section.threshold,
            align=recipe.cam.align,
            image=image,
            crf=section.crf.settings(),
            device=self.run.device,
        )

    def _segment(self, image: Picture) -> NDArray[np.uint8] | None:
        if self.predictor is None or not self.can_apply("segmenter"):
            return None
        return self.predictor.recipe_label(image, None, "segmenter")
