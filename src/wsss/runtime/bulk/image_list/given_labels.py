"""Classes of the images of a job from a label file, looked up before any work begins."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from ....errors import ConfigError, DataError
from ...io.image_labels import LabelEntry, LabelTable
from ..inputs.images import ImageRef
from .output_names import NamedImages

_SHOWN = 10


class GivenLabels:
    """Looks images up by their name, or by the bare name where no other image of the job has it.

    Args:
        names: of all images of the job.
    """

    def __init__(self, table: LabelTable, classes: Sequence[str], names: Iterable[str]) -> None:
        self._table = table
        self._indices = {name: index for index, name in enumerate(classes)}
        bare_names = map(_bare, names)
        # Only those that the table knows: as large as the table, not as the job.
        self._uses = Counter(bare for bare in bare_names if _mentions(table, bare))

    def find(self, name: str) -> tuple[int, ...]:
        """Indices of an image's classes, ascending; none: background alone.

        Raises:
            DataError: the table does not mention the image, or contradicts itself about it.
            ConfigError: a class that the model does not know.
        """
        entry = self._entry(name)
        if entry is None:
            raise DataError(f"the label file does not mention image {name!r}")
        unknown = [label for label in entry.labels if label not in self._indices]
        if unknown:
            raise ConfigError(f"label {unknown[0]!r} of image {name!r} is no class of the model")
        return tuple(sorted({self._indices[label] for label in entry.labels}))

    def _entry(self, name: str) -> LabelEntry | None:
        entry = self._table.find(name)
        bare = _bare(name)
        if entry is None and self._uses[bare] == 1:
            entry = self._table.find(bare)
        return entry


def image_refs(
    named: NamedImages, table: LabelTable | None, classes: Sequence[str]
) -> Iterator[ImageRef]:
    """The images as they are frozen, with their labels where there is a table.

    Raises:
        DataError, ConfigError: labels are missing or unknown; all images are looked at first, the
        first ten faults are told with their number. Nothing has been yielded by then.
    """
    labels = None
    if table is not None:
        labels = GivenLabels(table, classes, (image.name for image in named.images()))
        require_all(labels, (image.name for image in named.images()), classes)
    for image, output in named:
        found = labels.find(image.name) if labels is not None else None
        yield ImageRef(image.name, image.source, output, image.span, image.stamp, found)


def require_all(labels: GivenLabels, names: Iterable[str], classes: Sequence[str]) -> int:
    """Look all images up; how many have a class at all.

    Raises:
        DataError, ConfigError: see `image_refs`.
    """
    faults: list[DataError | ConfigError] = []
    count = num_with_classes = 0
    for name in names:
        try:
            num_with_classes += bool(labels.find(name))
        except (DataError, ConfigError) as error:
            count += 1
            if len(faults) < _SHOWN:
                faults.append(error)
    if not faults:
        return num_with_classes
    shown = "; ".join(map(str, faults)) + ("; ..." if count > _SHOWN else "")
    many = f"labels of {count} images do not fit: " if count > 1 else ""
    remedy = (
        f"give every image labels out of {', '.join(classes)} (an empty entry means background "
        "only), or leave `labels_path` out"
    )
    raise type(faults[0])(f"{many}{shown}: {remedy}")


def _mentions(table: LabelTable, name: str) -> bool:
    try:
        return table.find_key(name) is not None
    except DataError:  # more than once, which is told when the image is looked up
        return True


def _bare(name: str) -> str:
    return name.rpartition("/")[2]
