"""The losses of SEC as what a segmenter learns."""

from torch import Tensor, nn

from ...engine.loop import Batch, Objective
from ...engine.run import Run
from ...recipe.sections import SegmenterSection
from ..shared.crops import CropSampler, cell_pixels, inside_cells, inside_pixels, on_label_grid
from ..shared.segmenter_network import Segmenter
from ..shared.segmenter_stage import segmentation_objective
from .losses import (
    Term,
    constrain_term,
    expansion_terms,
    floored_probabilities,
    image_on_grid,
    join_terms,
    seed_term,
    weighted_means,
)
from .recipe import PlainSegmenterSection

TERMS = ("seed", "expand_present", "expand_background", "expand_absent", "constrain")


def plain_objective(
    run: Run, network: Segmenter, section: SegmenterSection, sample: CropSampler
) -> Objective:
    """What a plain segmenter learns: the loss that its section names."""
    if isinstance(section, PlainSegmenterSection) and section.loss == "sec":
        return sec_objective(run, network, section, sample)
    return segmentation_objective(run, network, section, sample)


def sec_objective(
    run: Run, network: Segmenter, section: PlainSegmenterSection, sample: CropSampler
) -> Objective:
    """Seed, expansion and constrain-to-boundary on the grid of labels.

    A loss whose weight is 0 is not computed, and its figures are 0.
    """
    align, losses = run.recipe.cam.align, section.sec
    corners = align == "corners"
    crf = losses.crf.settings()

    def terms(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = on_label_grid(model(batch["image"], inside_pixels(batch)), batch, align)
        probabilities = floored_probabilities(logits)
        inside = inside_cells(batch, section.label_stride, align)
        nothing = probabilities.sum() * 0
        found: list[Term] = [(nothing, nothing.detach())] * len(TERMS)
        if losses.seed:
            found[0] = seed_term(probabilities, batch["labels"])
        if losses.expand:
            found[1:4] = expansion_terms(
                probabilities,
                batch["classes"] > 0,
                inside,
                object_decay=losses.object_decay,
                background_decay=losses.background_decay,
            )
        if losses.constrain and crf is not None:
            found[4] = constrain_term(logits, on_grid(batch["image"]), inside, crf)
        return join_terms(found)

    def on_grid(pixels: Tensor) -> Tensor:
        rows, columns = (
            cell_pixels(side, section.label_stride, corners=corners) for side in pixels.shape[-2:]
        )
        return image_on_grid(pixels, rows, columns)

    weights = (losses.seed, losses.expand, losses.expand, losses.expand, losses.constrain)

    def loss(sums: Tensor, counts: Tensor) -> Tensor:
        return weighted_means(sums, counts, weights)

    return Objective(network, len(run.train_set.samples), sample, terms, loss, TERMS)
