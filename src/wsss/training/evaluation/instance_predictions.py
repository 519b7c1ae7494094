"""Predicted instances as they lie on the disk: VOC's pair of PNGs with scores, or COCO JSON."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArtifactError, ConfigError, DataError, ShapeError
from ...runtime.bulk.job import JOB, read_job
from ...runtime.bulk.plan import TAR
from ...runtime.instances.files import CLASSES, OBJECTS, read_ids
from ...runtime.instances.instance_map import InstanceMap
from ...runtime.io.image_io import image_size
from ...runtime.io.palette import IGNORE_INDEX
from ..data.coco import items_of, read_json, read_numbers
from ..data.coco_masks import rasterise
from ..data.files import image_name
from ..data.image_set import ImageSet, MaskFile, Sample
from ..data.voc import classes_under
from .average_precision import InstanceMasks
from .instances import InstancePredictions

COCO = "instances.json"
_GREATEST = 1e9  # false for what is no number, too


def open_instance_predictions(path: Path, images: ImageSet) -> InstancePredictions:
    """Predictions of a job of `wsss label`, of a folder with VOC's pair, or of a COCO JSON file.

    Raises:
        ConfigError: a job without instances.
        ArtifactError: nothing of the kind is there.
        DataError: a damaged file, or one that does not fit the images.
    """
    labels_used = None
    if (path / JOB).is_file():
        settings = read_job(path)["settings"]
        _require_formats(path, settings.get("formats", []))
        labels_used = settings.get("image_labels") is not None
    if (path / OBJECTS).is_dir():
        return PairPredictions(path, images, labels_used)
    if (path / COCO).is_file():
        path = path / COCO
    if path.is_file():
        return CocoPredictions(path, images, labels_used)
    raise ArtifactError(
        f"'{path}' holds no instances: expected a job of `wsss label --instances`, a folder with "
        f"{OBJECTS} and {CLASSES}, or a COCO JSON file with scores"
    )


class PairPredictions:
    """`SegmentationObject/NAME.png` with the scores in it, and `SegmentationClass/NAME.png`."""

    def __init__(
        self, folder: Path, images: ImageSet, image_labels_used: bool | None = None
    ) -> None:
        self.folder = folder
        self.description = f"instances in {folder / OBJECTS}"
        self.image_labels_used = image_labels_used
        self._num_classes = len(images.classes)

    def predict(self, sample: Sample) -> InstanceMap:
        """See `InstancePredictions`; pixels of 255 belong to no instance.

        Raises:
            ArtifactError: a file is not there; DataError: the two do not fit each other.
        """
        paths = [self.folder / part / f"{sample.name}.png" for part in (OBJECTS, CLASSES)]
        for path in paths:
            if not path.is_file():
                raise _missing(f"'{path}'", sample)
        stored, mask = read_ids(paths[0]), MaskFile(paths[1], self._num_classes).load()
        if stored.ids.shape != mask.shape:
            raise DataError(f"'{paths[0]}' and '{paths[1]}' differ in size")
        if stored.scores is None:
            raise DataError(
                f"'{paths[0]}' has no scores, expected a JSON list in the text chunk `scores`: "
                "evaluate a COCO JSON file instead"
            )
        ids = np.where(mask == IGNORE_INDEX, np.uint16(0), stored.ids)
        found, values = classes_under(ids, mask, str(paths[0]))
        classes = np.zeros(len(stored.scores), np.int64)
        try:
            classes[found - 1] = values
            return InstanceMap(ids, classes, stored.scores)
        except (IndexError, ShapeError):
            raise DataError(
                f"'{paths[0]}' has ids up to {int(found.max())} and {len(classes)} scores, "
                "expected one for each id"
            ) from None


class CocoPredictions:
    """Annotations with a `score` each: a whole document, or a bare list of results.

    Images and classes of a document go by their names. A list has only ids: those of the
    annotation files of the image set, where it has any; else an image's id is its name, or the
    number that its digits make, and a category's the label value (class index + 1).
    """

    def __init__(self, path: Path, images: ImageSet, image_labels_used: bool | None = None) -> None:
        """Read the file; masks are decoded when they are asked for."""
        self.path = path
        self.description = f"instances in {path}"
        self.image_labels_used = image_labels_used
        self._class_of = {name: place for place, name in enumerate(images.classes)}
        content, _ = read_json(path)
        if isinstance(content, list):
            content = {"annotations": content}
            self._listed: frozenset[str] | None = None  # without an entry there are none in it
            image_names, class_names = read_numbers(images.root) or _numbers(images)
        else:
            found = items_of(content, "images", ("id", "file_name"), path)
            image_names = {item["id"]: image_name(item["file_name"]) for item in found}
            self._listed = frozenset(image_names.values())
            found = items_of(content, "categories", ("id", "name"), path)
            class_names = {item["id"]: str(item["name"]).strip() for item in found}
        self._items: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        for item in items_of(content, "annotations", ("image_id", "category_id"), path):
            name = self._meant(item["image_id"], image_names, "image")
            label = self._meant(item["category_id"], class_names, "category")
            if label not in self._class_of:
                raise DataError(
                    f"'{path}' has the class '{label}', the image set has "
                    f"{', '.join(images.classes)}: give predictions of its classes"
                )
            score = item.get("score")
            if not (isinstance(score, int | float) and abs(score) < _GREATEST):
                raise DataError(f"'{path}' has an annotation without a score: predictions need one")
            self._items[name].append((self._class_of[label], item))

    def predict(self, sample: Sample) -> InstanceMasks:
        """See `InstancePredictions`.

        Raises:
            ArtifactError: the document does not list the image; DataError: a mask that is none.
        """
        if self._listed is not None and sample.name not in self._listed:
            raise _missing(f"in '{self.path}'", sample)
        height, width = image_size(sample.image_path)
        items = self._items.get(sample.name, [])
        pixels = []
        for _, item in items:
            try:
                inside = rasterise(item.get("segmentation"), height, width)
            except DataError as error:
                raise DataError(f"image '{sample.name}' of '{self.path}': {error}") from None
            pixels.append(np.flatnonzero(inside))
        lengths = [len(each) for each in pixels]
        return InstanceMasks(
            (height, width),
            np.concatenate([np.zeros(0, np.int64), *pixels]),
            np.repeat(np.arange(len(items)), lengths),
            np.array([index for index, _ in items], np.int64),
            np.array([item["score"] for _, item in items], np.float32),
        )

    def _meant(self, key: Any, names: Mapping[Any, str], what: str) -> str:
        if key not in names:
            known = ", ".join(map(repr, list(names)[:3]))
            raise DataError(
                f"'{self.path}' has an annotation of the {what} {key!r}, which is not known: "
                f"expected one such as {known}"
            )
        return names[key]


def _numbers(images: ImageSet) -> tuple[dict[Any, str], dict[Any, str]]:
    """What ids mean where no annotation file says it."""
    names = {sample.name: sample.name for sample in images.samples}
    digits = {name: "".join(re.findall("[0-9]", name)) for name in names}
    often = Counter(int(number) for number in digits.values() if number)  # 07 and 7 are one id
    numbers = {int(n): name for name, n in digits.items() if n and often[int(n)] == 1}
    return {**names, **numbers}, dict(enumerate(images.classes, 1))


def _missing(what: str, sample: Sample) -> ArtifactError:
    return ArtifactError(
        f"no prediction {what} for image '{sample.name}': make the missing ones, or choose a list "
        "by `split` that the predictions cover"
    )


def _require_formats(out: Path, formats: list[str]) -> None:
    if TAR in formats or not {"instances", "coco-instances"} & set(formats):
        raise ConfigError(
            f"'{out}' was written in the formats {','.join(formats)}: label again into another "
            "folder with instances"
        )
