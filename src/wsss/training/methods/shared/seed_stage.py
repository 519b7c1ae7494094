"""Stage 2: seeds, the confident first labels from which affinities are learnt."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ....errors import DataError
from ....runtime.io.image_io import read_image, read_label_map, write_label_map
from ....runtime.io.palette import IGNORE_INDEX
from ....runtime.io.score_maps import ScoreMaps, load_score_maps
from ....runtime.refine.seeds import make_seed
from ...data.image_set import Sample
from ...engine.run import Run
from ...evaluation.miou import ConfusionMatrix
from ...recipe.recipe import Recipe
from .per_image import make_files, make_image_files


def make_seeds(run: Run, folder: Path, digest: str) -> None:
    """Write `NAME.png` (label map with 255 = undecided) for every training image."""
    if run.seeds_path is None:
        _from_cams(run, folder)
    else:
        _take_seeds(run, run.seeds_path, folder)


def _from_cams(run: Run, folder: Path) -> None:
    scores = run.folder / "cam" / "scores"

    def make(sample: Sample, image: NDArray[np.uint8], path: Path) -> None:
        maps = load_score_maps(scores / f"{sample.name}.npz")
        write_label_map(path, image_seed(run.recipe, image, maps, run.device))

    make_image_files(run, "seeds", folder, ".png", make)


def image_seed(
    recipe: Recipe, image: NDArray[np.uint8], maps: ScoreMaps, device: torch.device
) -> NDArray[np.uint8]:
    """The recipe's two-sided seed of one image, see `make_seed`."""
    section = recipe.seeds
    return make_seed(
        image,
        maps.scores,
        maps.classes,
        rule=section.rule,
        foreground=section.foreground,
        background=section.background,
        unary=section.unary,
        certainty=section.certainty,
        crf=section.crf.settings(),
        align=recipe.cam.align,
        device=device,
    )


def _take_seeds(run: Run, source: Path, folder: Path) -> None:
    """Seeds of another method take the place of ours."""
    highest = len(run.train_set.classes)

    def load(sample: Sample) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        image = read_image(sample.image_path)
        return read_label_map(source / f"{sample.name}.png"), (image.shape[0], image.shape[1])

    def make(sample: Sample, loaded: tuple[NDArray[np.uint8], tuple[int, int]], path: Path) -> None:
        seed, size = loaded
        wrong = seed[(seed > highest) & (seed != IGNORE_INDEX)]
        if len(wrong):
            raise DataError(
                f"seed '{sample.name}.png' holds label {wrong[0]}, expected 0..{highest} or 255"
            )
        if seed.shape != size:
            raise DataError(
                f"seed '{sample.name}.png' is {seed.shape[0]} x {seed.shape[1]}, its image "
                f"{size[0]} x {size[1]}: seeds must have the image's size"
            )
        write_label_map(path, seed)

    make_files(run, "import of seeds", folder, ".png", load, make)


def measure_seeds(run: Run, folder: Path) -> dict[str, float]:
    """Share of decided pixels, and mIoU and accuracy among them, in per cent."""
    subset = run.figures_set
    if subset is None:
        return {}
    matrix = ConfusionMatrix(len(subset.classes))
    decided = counted = 0
    for sample in subset.samples:
        seed, truth = read_label_map(folder / f"{sample.name}.png"), sample.load_mask().copy()
        counted += int((truth != IGNORE_INDEX).sum())
        truth[seed == IGNORE_INDEX] = IGNORE_INDEX
        decided += int((truth != IGNORE_INDEX).sum())
        matrix.add(seed, truth)
    right = float(np.diag(matrix.counts).sum())
    return {
        "decided": round(100 * decided / max(counted, 1), 3),
        "miou": round(100 * matrix.miou(), 3),
        "accuracy": round(100 * right / max(decided, 1), 3),
        "images": len(subset.samples),
    }
