"""The contract of output formats: files of an image, and entries that one file collects."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..inputs.images import LabelledImage

Need = Literal["confidence", "scores", "instances"]
"""What costs time and is computed only when a writer wants it."""


@dataclass(frozen=True)
class JobView:
    """What every output says of its origin.

    Attributes:
        classes: names without background; label value = place + 1.
        palette: (256, 3) uint8 RGB by label value.
        provenance: what decides the pixels: model digest, settings. JSON-compatible, the same in
            every run of the job.
    """

    classes: tuple[str, ...]
    palette: NDArray[np.uint8]
    provenance: dict[str, Any]


class Writer:
    """One output format; the same image gives the same bytes, always.

    A writer is made in each worker process. It may give files of each image, or entries that are
    collected into a few files when the job is complete, or both.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __init__(self, job: JobView) -> None:
        self.job = job

    def files(self, image: LabelledImage) -> Iterator[tuple[str, bytes]]:
        """Path relative to the output folder, and content, of each file of an image."""
        return iter(())

    def entry(self, image: LabelledImage) -> Any:
        """What `collect` needs of an image, JSON-compatible; None: nothing, it gets no entry."""
        return None

    def collect(self, entries: Iterable[Any]) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Files of the whole job, each as pieces of bytes.

        Args:
            entries: of all images that gave one, in the order of the list; a stream of any length
                that can be gone through more than once, and is never to be held whole.

        The pieces of a file are to be read before the next file is asked for.
        """
        return iter(())
