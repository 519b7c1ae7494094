"""Which images of a job a report shows: one pass over the records, memory for those alone.

Samples are the images whose names have the smallest hashes, so the same job shows the same images
whatever the order in which its units were labelled.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappush, heapreplace
from pathlib import Path

from ...io.progress import ProgressTask
from ..image_list.frozen_list import FrozenList
from ..image_list.large_sets import name_hash
from ..work.records import ImageRecord, read_images

BACKGROUND_ALONE = 0
"""Among the groups of a sample: images without a pixel of any class."""
_NUM_RANKED = 24
"""Images of each order: worst by confidence, most changed, with a missing class."""
_SAMPLED, _MOST_OF_A_CLASS = 120, 8
"""Images of all classes together, while one of each fits; and of one class."""


@dataclass(frozen=True)
class Shown:
    """An image to show, and the unit that holds it."""

    unit: int
    record: ImageRecord


@dataclass(frozen=True)
class Chosen:
    """Images to show, each list in the order of showing.

    Attributes:
        by_class: label value -> sample of the images in which it occurs; see `BACKGROUND_ALONE`.
        doubtful: lowest mean confidence first.
        changed: those whose CAM the walk changed most.
        missing: sample of the images in which a given class got no pixel.
        num_missing: all of those.
        first_failures: code -> first image of the list that failed so.
    """

    by_class: dict[int, list[Shown]] = field(default_factory=dict)
    doubtful: list[Shown] = field(default_factory=list)
    changed: list[Shown] = field(default_factory=list)
    missing: list[Shown] = field(default_factory=list)
    num_missing: int = 0
    first_failures: dict[str, ImageRecord] = field(default_factory=dict)

    def pictures(self) -> list[Shown]:
        """All images that are shown, each once, by unit and place."""
        lists = [*self.by_class.values(), self.doubtful, self.changed, self.missing]
        found = {shown.record.index: shown for some in lists for shown in some}
        return [found[index] for index in sorted(found)]


def choose(
    out: Path,
    images: FrozenList,
    units: Iterable[int],
    num_classes: int,
    task: ProgressTask | None = None,
) -> Chosen:
    """Read the records of units and choose.

    Args:
        units: that have a record, ascending.
        task: told of the images of each unit.

    Raises:
        ArtifactError: a record is damaged.
    """
    per_class = min(_MOST_OF_A_CLASS, max(1, _SAMPLED // (num_classes + 1)))
    by_class = [_Smallest(per_class) for _ in range(num_classes + 1)]
    doubtful, changed, missing = (_Smallest(_NUM_RANKED) for _ in range(3))
    failures: dict[str, ImageRecord] = {}
    num_missing = 0
    for unit in units:
        for record in read_images(out, images, unit):
            if not record.is_ok:
                failures.setdefault(record.code, record)
                continue
            shown, order = Shown(unit, record), name_hash(record.name)
            found = [value for value in record.pixels if 1 <= value <= num_classes]
            for value in found or (BACKGROUND_ALONE,):
                by_class[value].offer(order, shown)
            if record.confidence is not None:
                doubtful.offer(record.confidence, shown)
            if record.change is not None:
                changed.offer(-record.change, shown)
            if record.missing:
                num_missing += 1
                missing.offer(order, shown)
        if task is not None:
            task.advance(images.parts[unit].count)
    return Chosen(
        {value: some.in_order() for value, some in enumerate(by_class) if some.in_order()},
        doubtful.in_order(),
        changed.in_order(),
        missing.in_order(),
        num_missing,
        failures,
    )


class _Smallest:
    """Those of all images that were offered whose keys are the smallest."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[float, int, Shown]] = []  # the greatest key first

    def offer(self, key: float, shown: Shown) -> None:
        """One more; of equal keys the image that comes first in the list."""
        entry = (-key, -shown.record.index, shown)
        if len(self._heap) < self._count:
            heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapreplace(self._heap, entry)

    def in_order(self) -> list[Shown]:
        """The smallest key first."""
        return [shown for *_, shown in sorted(self._heap, key=lambda entry: entry[:2])[::-1]]
