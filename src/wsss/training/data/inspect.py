"""What an image set holds and what is wrong with it; every image and every mask is opened."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...runtime.io.files import open_regular
from ...runtime.io.image_io import read_image
from ...runtime.io.progress import SILENT, Progress
from .findings import Finding
from .image_set import ImageSet, Sample
from .readers import read_image_set

THIN_CLASS_IMAGES = 20
"""Below this many training images, a single one is over 5 % of what a class is learnt from."""

_AHEAD = 64  # images read ahead of the one reported; bounds memory


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        splits: images by list.
        class_images: images that show a class, by class, then by list and `all`.
        background_only, unlabelled: images with an empty entry, and with none.
        masks: images that have one.
        instance_masks: images whose single objects are known.
        thin_classes: classes with less than `thin_limit` training images, and how many.
        findings: faults and oddities; an image may have several.
    """

    root: str
    layout: str
    classes: tuple[str, ...]
    images: int
    splits: dict[str, int]
    class_images: dict[str, dict[str, int]]
    background_only: int
    unlabelled: int
    masks: int
    instance_masks: int
    thin_classes: dict[str, int]
    findings: tuple[Finding, ...]
    thin_limit: int = THIN_CLASS_IMAGES

    def by_kind(self) -> dict[str, list[Finding]]:
        """Findings by kind, the most frequent first."""
        kinds: dict[str, list[Finding]] = defaultdict(list)
        for finding in self.findings:
            kinds[finding.kind].append(finding)
        return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self)


def inspect(root: Path, *, progress: Progress = SILENT) -> Inspection:
    """Read an image set whole and tell what is in it.

    Raises:
        DataError: the set cannot be read at all: no folder, no known layout, no images.
    """
    images = read_image_set(root, strict=False)
    findings = list(images.findings)
    with progress.task("images", len(images.samples)) as task:
        for found in _in_order(images.samples):
            findings += found
            task.advance()
    unreadable = {found.image for found in findings if found.kind == "unreadable image"}
    findings += _duplicates(s for s in images.samples if s.name not in unreadable)
    counts = _class_images(images)
    train = "train" if "train" in images.splits else "all"
    labels = [sample.labels for sample in images.samples]
    return Inspection(
        root=str(images.root),
        layout=images.layout,
        classes=images.classes,
        images=len(images.samples),
        splits={name: len(images.select(name).samples) for name in images.splits},
        class_images=counts,
        background_only=labels.count(()),
        unlabelled=labels.count(None),
        masks=sum(sample.mask is not None for sample in images.samples),
        instance_masks=sum(sample.instances is not None for sample in images.samples),
        thin_classes={
            name: row[train] for name, row in counts.items() if row[train] < THIN_CLASS_IMAGES
        },
        findings=tuple(findings),
    )


def _class_images(images: ImageSet) -> dict[str, dict[str, int]]:
    lists = ("all", *images.splits)
    counts = {name: dict.fromkeys(lists, 0) for name in images.classes}
    for sample in images.samples:
        for index in sample.labels or ():
            for part in ("all", *sample.splits):
                counts[images.classes[index]][part] += 1
    return counts


def _check(sample: Sample) -> list[Finding]:
    """Faults of one image and its mask."""
    try:
        read_image(sample.image_path)
    except DataError as error:
        return [Finding("unreadable image", sample.name, str(error))]
    try:
        if sample.mask is not None:
            sample.load_mask()
        if sample.instances is not None:
            sample.load_instances()
    except DataError as error:
        return [Finding("bad mask", sample.name, str(error))]
    return []


def _in_order(samples: Sequence[Sample]) -> Iterator[list[Finding]]:
    pending: list[Future[list[Finding]]] = []
    with ThreadPoolExecutor(2) as pool:
        for sample in samples:
            pending.append(pool.submit(_check, sample))
            if len(pending) > _AHEAD:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def _duplicates(samples: Iterable[Sample]) -> list[Finding]:
    """Files of equal bytes; across lists they let a network be measured on what it learnt."""
    findings = []
    for same_size in _groups(samples, lambda sample: sample.image_path.stat().st_size):
        for first, *others in _groups(same_size, lambda sample: _digest(sample.image_path)):
            for other in others:
                lists = "; ".join(", ".join(s.splits) or "no list" for s in (first, other))
                text = (
                    f"images '{first.name}' and '{other.name}' are the same file (in {lists}): "
                    "keep one"
                )
                findings.append(Finding("duplicate", other.name, text))
    return findings


def _groups(samples: Iterable[Sample], key: Callable[[Sample], Hashable]) -> Iterator[list[Sample]]:
    """Groups of at least two with an equal key."""
    groups: dict[Hashable, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[key(sample)].append(sample)
    return (group for group in groups.values() if len(group) > 1)


def _digest(path: Path) -> bytes:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").digest()
