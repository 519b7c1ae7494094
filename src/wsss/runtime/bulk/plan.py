"""What a job is: its settings, and what of them decides the pixels."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..io.image_io import DEFAULT_MAX_PIXELS, LARGEST_MAX_PIXELS, USUAL_PIXEL_LIMIT
from ..predictor import PredictorSpec

INPUTS = "inputs"
"""Folder of the frozen list."""
TAR = "tar"
"""Among the formats: not one by itself, but all others packed into a tar a unit."""
DEFAULT_TILE_PIXELS = 1 << 22
"""2048 x 2048: of these the walk of a ResNet50 bundle with 20 classes takes some 8 GB."""
_LEAST_TILE_PIXELS = 1 << 16


@dataclass(frozen=True)
class Settings:
    """How a job labels and writes.

    Raises:
        ConfigError: a value that cannot be.
    """

    formats: tuple[str, ...] = ("png",)
    """Names of writers; `tar` packs what they write."""
    min_confidence: float | None = None
    """Pixels below it get 255, in [0, 1]; None: none does."""
    batch: int = 1
    """Images of equal size that go through the network together, >= 1; within a unit."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Larger images fail; above 178,956,970 images are decoded by workers alone, see `pool`."""
    tile_pixels: int = DEFAULT_TILE_PIXELS
    """Larger images are labelled in tiles of at most as many pixels, >= 65,536; see `tiles`."""

    def __post_init__(self) -> None:
        if not self.formats or set(self.formats) == {TAR}:
            raise ConfigError("no output format: give `formats` png, or several")
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"`min_confidence` is {self.min_confidence}, expected 0 to 1")
        if self.batch < 1:
            raise ConfigError(f"`batch` is {self.batch}, expected at least 1")
        if not 1 <= self.max_pixels <= LARGEST_MAX_PIXELS:
            raise ConfigError(
                f"`max_pixels` is {self.max_pixels}, expected 1 to {LARGEST_MAX_PIXELS}"
            )
        if self.tile_pixels < _LEAST_TILE_PIXELS:
            raise ConfigError(
                f"`tile_pixels` is {self.tile_pixels}, expected at least {_LEAST_TILE_PIXELS}"
            )

    @property
    def as_tar(self) -> bool:
        """Whether files are packed."""
        return TAR in self.formats

    @property
    def takes_huge(self) -> bool:
        """Whether there may be images that decoders refuse unless they are told."""
        return self.max_pixels > USUAL_PIXEL_LIMIT

    @property
    def writers(self) -> tuple[str, ...]:
        """Names of the writers, in an order of their own: that of the command says nothing."""
        return tuple(sorted(name for name in self.formats if name != TAR))


@dataclass(frozen=True)
class Plan:
    """A job as workers get it; pickled.

    Attributes:
        list_digest: of the frozen list of images.
        image_labels: digest of the table of image-level labels, whose content is in the list.
        threads: that a worker computes with; None: as many as it likes.
        begun_with: settings in the job's `job.json`, which an older version may have written in
            another form; None: a new job.
    """

    out: Path
    model: PredictorSpec
    settings: Settings
    list_digest: str = ""
    image_labels: str | None = None
    threads: int | None = None
    begun_with: Mapping[str, Any] | None = None

    def identity(self) -> dict[str, Any]:
        """What decides pixels and files, in the form and order in which `job.json` holds it."""
        if self.begun_with is not None:
            return dict(self.begun_with)
        settings = {
            "model": dict(self.model.identity()),
            "classes": list(self.model.classes),
            "image_labels": self.image_labels,
            "formats": sorted(self.settings.formats),
            "min_confidence": self.settings.min_confidence,
            "batch": self.settings.batch,
            "max_pixels": self.settings.max_pixels,
            "tile_pixels": min(self.settings.tile_pixels, self.settings.max_pixels),
        }
        ordered: dict[str, Any] = json.loads(_text(settings))
        return ordered

    def digest(self) -> str:
        """Of the identity; stands in every record."""
        return settings_digest(self.identity())


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Of the settings that `job.json` holds."""
    return hashlib.sha256(_text(settings).encode("ascii")).hexdigest()


def _text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, allow_nan=False)
