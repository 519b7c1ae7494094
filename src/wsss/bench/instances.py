"""Cost of making instances, stage by stage, against the published forms in the same process."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..errors import WsssError
from ..runtime.instances.displacement import cluster_cells, refine_centroids
from ..runtime.instances.grouping import RunningArgmax
from ..runtime.instances.segments import segments_of
from ..runtime.instances.settings import InstanceSettings
from ..runtime.refine.boundary_affinity import boundary_affinities
from ..runtime.refine.pseudo_labels import WalkSettings, walk_planes
from . import published_operators as published
from .stages import median_seconds

LEAST_AGREEMENT = 0.99
"""Share of cells that must arrive where the published form arrives before a time is told. The rest
are cells that no precision holds: those that start on a watershed of the field."""


@dataclass(frozen=True)
class InstanceCase:
    """One image on the grid.

    Attributes:
        size: (height, width) of the image.
        scores: (n, h, w) CAMs.
        boundary: (1, h, w) in [0, 1].
        displacement: (2, h, w) in cells.
    """

    size: tuple[int, int]
    scores: Tensor
    boundary: Tensor
    displacement: Tensor


@dataclass(frozen=True)
class InstanceRow:
    """One stage.

    Attributes:
        planes: of score, one a class and cluster.
        batch: images at once.
        published_seconds: of one image; None for clusters, where the published form does nothing
            else, and for the walk, which `bench_walk` compares.
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    planes: int
    stage: str
    batch: int
    seconds_per_image: float
    published_seconds: float | None
    speedup: float | None


def bench_instances(
    case: InstanceCase,
    walk: WalkSettings,
    settings: InstanceSettings,
    *,
    batch: int = 8,
    rounds: int = 5,
) -> Iterator[InstanceRow]:
    """Rows on the CPU: refine (one image and a batch), cluster, affinity and walk, label.

    Raises:
        WsssError: centroids are not those of the published form.
    """
    field = case.displacement.numpy()
    refine = partial(refine_centroids, case.displacement[None], steps=settings.steps)
    together = case.displacement[None].expand(batch, *field.shape)
    refine_all = partial(refine_centroids, together, steps=settings.steps)
    follow = partial(published.follow_displacement, field, settings.steps)
    centroids = refine()[0].numpy()
    agreement = float((centroids == follow()).all(0).mean())
    if agreement < LEAST_AGREEMENT:
        raise WsssError(
            f"{agreement:.4f} of the cells arrive where the published form arrives, expected at "
            f"least {LEAST_AGREEMENT}"
        )
    cluster = partial(cluster_cells, field, centroids, radius=settings.centroid_radius)
    clusters = torch.from_numpy(cluster())
    parts = torch.arange(int(clusters.amax()) + 1).view(-1, 1, 1) == clusters
    planes = (case.scores[:, None] * parts).flatten(0, 1)

    def walk_all() -> Tensor:
        affinity, damping = boundary_affinities(case.boundary[None], walk)
        return walk_planes(planes, affinity, walk, damping)

    label = partial(_label, walk_all(), case.size, walk, settings)
    masks = partial(
        published.instance_masks,
        walk_all(),
        case.size,
        walk.align,
        settings.threshold,
        settings.min_area,
    )
    stages: dict[str, tuple[Callable[[], object], Callable[[], object] | None]] = {
        "refine": (refine, follow),
        "refine, batch": (refine_all, None),
        "cluster": (cluster, None),
        "walk": (walk_all, None),
        "label": (label, masks),
    }
    forms = {name: ours for name, (ours, _) in stages.items()}
    forms |= {f"{name}, published": form for name, (_, form) in stages.items() if form}
    seconds = median_seconds(forms, rounds=rounds, synchronise=lambda: None)
    baselines = {name: seconds.get(f"{name}, published") for name in stages}
    baselines["refine, batch"] = baselines["refine"]
    for name in stages:
        images = batch if name == "refine, batch" else 1
        each, baseline = seconds[name] / images, baselines[name]
        yield InstanceRow(
            case.size,
            (field.shape[1], field.shape[2]),
            len(planes),
            name,
            images,
            each,
            baseline,
            baseline / each if baseline else None,
        )


def _label(
    walked: Tensor, size: tuple[int, int], walk: WalkSettings, settings: InstanceSettings
) -> object:
    strongest = RunningArgmax(
        size, walk.align, threshold=settings.threshold, scale=None, device=walked.device
    )
    strongest.add(walked)
    return segments_of(
        *strongest.result(),
        np.zeros(len(walked), np.int64),
        min_area=settings.min_area,
        keep_fragments=settings.fragments == "keep",
    )
