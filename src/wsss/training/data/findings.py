"""What is wrong with an image set: raised at the first fault, or collected to be shown."""

from dataclasses import dataclass, field
from typing import Literal

from ...errors import DataError

FindingKind = Literal[
    "unlabelled image",
    "label without image",
    "unknown label",
    "missing image",
    "image in no list",
    "unplaced image",
    "unreadable image",
    "unreadable labels",
    "bad mask",
    "duplicate",
    "refused name",
]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd.

    Attributes:
        image: name of the image it is about, or of the file where no image is meant.
        text: one line: found, expected, remedy.
    """

    kind: FindingKind
    image: str
    text: str


@dataclass
class Findings:
    """Collector that a reader reports to.

    Attributes:
        strict: faults are raised instead of collected.
    """

    strict: bool = True
    items: list[Finding] = field(default_factory=list)

    def fault(self, kind: FindingKind, image: str, text: str) -> None:
        """Something that training must not meet.

        Raises:
            DataError: with this text, when strict.
        """
        if self.strict:
            raise DataError(text)
        self.note(kind, image, text)

    def note(self, kind: FindingKind, image: str, text: str) -> None:
        """Something that is legal but that a user wants to know."""
        self.items.append(Finding(kind, image, text))
