"""Which classes a set has, in which order, and labels as indices into them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ...errors import DataError
from ...runtime.io.files import read_file
from ...runtime.io.image_labels import BACKGROUND_NAMES, object_names
from .findings import Findings
from .image_set import MAX_CLASSES

_VOC_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
)
VOC_CLASSES = tuple(_VOC_NAMES.split())
"""The 20 classes of PASCAL VOC in the order of its masks' indices 1 to 20."""

_MAX_LIST_BYTES = 64 << 20


def given_classes(folders: Iterable[Path], classes: Sequence[str] | None) -> tuple[str, ...] | None:
    """The class list that the caller or a `classes.txt` fixes, or None.

    Args:
        folders: where `classes.txt` (one name a line, in the order of the masks' indices) is
            looked for.
        classes: names that take the place of any file.

    Raises:
        DataError: a name twice, too many names, or the background not in the first line.
    """
    if classes is not None:
        return check_classes(classes, "the given class list")
    for folder in folders:
        path = folder / "classes.txt"
        if path.is_file():
            return check_classes(read_lines(path), f"'{path}'")
    return None


def check_classes(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The names as a class list; a background in the first place is left out.

    Raises:
        DataError: see `given_classes`.
    """
    stripped = [name.strip() for name in names]
    if stripped and stripped[0] in BACKGROUND_NAMES:
        del stripped[0]
    for place, name in enumerate(stripped):
        if name in BACKGROUND_NAMES:
            raise DataError(f"{where} has '{name}' in the middle: put it first or leave it out")
        if not name or name in stripped[:place]:
            found = f"the name '{name}' twice" if name else "an empty name"
            raise DataError(f"{where} has {found}: write each class once")
    if not 1 <= len(stripped) <= MAX_CLASSES:
        raise DataError(f"{where} has {len(stripped)} classes, expected 1 to {MAX_CLASSES}")
    return tuple(stripped)


def ordered_classes(found: Iterable[str]) -> tuple[str, ...]:
    """A class list for names that came without an order: that of the alphabet.

    Raises:
        DataError: no names, or too many.
    """
    names = sorted(object_names(found))
    if not names:
        raise DataError("no image has a label: expected the name of a class for some of them")
    return check_classes(names, "the image set")


def class_indices(
    names: Iterable[str], classes: Sequence[str], image: str, findings: Findings
) -> tuple[int, ...]:
    """Indices of an image's labels, ascending; names outside the list are reported."""
    indices = []
    for name in object_names(names):
        if name in classes:
            indices.append(classes.index(name))
        else:
            findings.fault(
                "unknown label",
                image,
                f"label '{name}' of image '{image}' is not in the class list "
                f"({_shortened(classes)}): add it to classes.txt or mend the label",
            )
    return tuple(sorted(indices))


def read_lines(path: Path) -> list[str]:
    """Lines of a small text file, stripped, without empty ones.

    Raises:
        DataError: unreadable or not UTF-8.
    """
    data = read_file(path, max_bytes=_MAX_LIST_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _shortened(names: Sequence[str], limit: int = 30) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
