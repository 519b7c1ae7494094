"""What a labelling job would do, found out without writing anything."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..io.files import BadImage, file_digest
from ..io.image_labels import read_label_table
from ..predictor import PredictorSpec
from .image_list.frozen_list import FrozenList, unit_size_for
from .image_list.given_labels import GivenLabels, require_all
from .inputs.folder_scan import LeftOut
from .inputs.images import ImageRef, read_size
from .inputs.sources import Sources
from .job import inspect_job
from .plan import Plan, Settings
from .run import require_provided
from .summary import JobCounts, count_records
from .work.records import read_images, recorded_units

_LOOKED_AT = 1000
"""Images whose headers are read: evenly spread over those that are not labelled yet."""
_SHOWN = 3
_UNITS = 10
"""Of a job that exists, from which they are taken."""
_WEIGHED = 100
"""Label maps whose sizes are looked at."""


@dataclass(frozen=True)
class BadHeader:
    """An image of the sample that cannot be labelled."""

    image: str
    code: str
    reason: str


@dataclass(frozen=True)
class DryRun:
    """What a call would find.

    Attributes:
        is_begun: whether the folder holds this job already.
        left_out: see `LeftOut`; empty: nothing was.
        units: of the list, or that it would have.
        with_labels: images to which the label file gives a class; None without one, or where the
            list has them already.
        labelled, failed: images that are done.
        looked_at: images whose headers were read.
        bad: how many of those cannot be used.
        first_bad: some of them.
        bytes_per_label_map: mean of some that are there; None: there are none, or tars.
        free_bytes: on the disk of the output.
    """

    out: str
    is_begun: bool
    images: int
    left_out: str
    units: int
    with_labels: int | None
    labelled: int
    failed: int
    looked_at: int
    bad: int
    first_bad: tuple[BadHeader, ...]
    bytes_per_label_map: float | None
    free_bytes: int

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self)


def dry_run(
    sources: Sequence[str | Path],
    model: PredictorSpec,
    out: Path,
    *,
    settings: Settings | None = None,
    labels_path: Path | None = None,
    follow_links: bool = False,
) -> DryRun:
    """Look at everything that `label_in_bulk` would refuse; see there for the arguments.

    Raises:
        ConfigError, DataError, ArtifactError and others: what `label_in_bulk` raises before its
        first image.
    """
    settings = settings or Settings()
    require_provided(model, settings)
    table = read_label_table(labels_path, classes=model.classes) if labels_path else None
    digest = file_digest(labels_path) if labels_path else None
    plan = Plan(out, model, settings, image_labels=digest)
    model.open(None).close()
    searched = Sources(tuple(map(str, sources)), follow_links)
    plan, images = inspect_job(plan, searched)
    left_out = LeftOut()
    with_labels: int | None = None
    if images is not None:
        counts = count_records(out, images, settings=plan.digest())
        sample, size = _rest(out, images), _label_map_bytes(out, images)
    else:
        found = _Sampled(
            ImageRef(image.name, image.source, "", image.span, image.stamp)
            for image in searched.images(out, left_out)
        )
        sample, size = list(found), None
        units = -(-found.count // unit_size_for(found.count))
        counts = JobCounts(units, 0, found.count, {}, {}, {})
        if table is not None:
            # Two walks: ten million names are not kept.
            first, second = ((image.name for image in searched.images(out)) for _ in "12")
            labels = GivenLabels(table, model.classes, first)
            with_labels = require_all(labels, second, model.classes)
    bad = list(_unreadable(sample, settings.max_pixels))
    free = shutil.disk_usage(next(path for path in (out, *out.absolute().parents) if path.exists()))
    return DryRun(
        str(out),
        images is not None,
        counts.images,
        str(left_out),
        counts.units,
        with_labels,
        counts.labelled,
        counts.failed,
        len(sample),
        len(bad),
        tuple(bad[:_SHOWN]),
        size,
        free.free,
    )


class _Sampled:
    """Up to `_LOOKED_AT` of a stream of any length, evenly spread.

    Attributes:
        count: images of the stream, once it was gone through.
    """

    def __init__(self, images: Iterable[ImageRef]) -> None:
        self._images, self.count = images, 0

    def __iter__(self) -> Iterator[ImageRef]:
        kept: list[ImageRef] = []
        step = 1
        for image in self._images:
            if self.count % step == 0:
                kept.append(image)
            if len(kept) > _LOOKED_AT:
                kept, step = kept[::2], 2 * step
            self.count += 1
        return iter(kept)


def _rest(out: Path, images: FrozenList) -> list[ImageRef]:
    """Some of the images that are not through."""
    done = recorded_units(out)
    units = [unit for unit in range(images.num_units) if unit not in done]
    chosen = units[:: max(1, -(-len(units) // _UNITS))]
    return list(_Sampled(image for unit in chosen for image in images.unit(unit)))


def _unreadable(images: Iterable[ImageRef], max_pixels: int) -> Iterator[BadHeader]:
    for image in images:
        try:
            read_size(image, max_pixels)
        except BadImage as error:
            yield BadHeader(image.source, error.code, str(error))


def _label_map_bytes(out: Path, images: FrozenList) -> float | None:
    """Mean size of some label maps that are there."""
    units = sorted(recorded_units(out).intersection(range(images.num_units)))
    records = (each for unit in units for each in read_images(out, images, unit))
    paths = (out / "masks" / f"{record.output}.png" for record in records if record.is_ok)
    sizes = [path.stat().st_size for path in islice(paths, _WEIGHED) if path.is_file()]
    return sum(sizes) / len(sizes) if sizes else None
