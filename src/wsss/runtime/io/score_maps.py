"""Score maps of one image on disk: what passes between the CAM, walk and evaluation stages.

The same file is the door for maps of other methods: any npz with `scores` and `classes` is read.
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError
from .files import atomic_write_bytes

MAX_BYTES = 2**31
"""Larger arrays in a score file are refused before they are read."""


@dataclass(frozen=True)
class ScoreMaps:
    """Scores of the classes of one image.

    Attributes:
        classes: (n,) int64, 0-based class indices, ascending, without background.
        scores: (n, h, w) float32, 0 or more; CAMs reach 1 for each class that responds.
        size: (height, width) of the image in pixels.
        background: (h, w) float32, or None where a constant or power rule supplies it later.
    """

    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    size: tuple[int, int]
    background: NDArray[np.float32] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the maps."""
        return self.scores.shape[1], self.scores.shape[2]

    def select(self, classes: NDArray[np.int64]) -> "ScoreMaps":
        """Only the given classes; those without a map are left out."""
        keep = np.isin(self.classes, classes)
        return ScoreMaps(self.classes[keep], self.scores[keep], self.size, self.background)


def save_score_maps(path: Path, maps: ScoreMaps) -> None:
    """Write maps as compressed npz with float16 scores, atomically."""
    arrays: dict[str, NDArray[Any]] = {
        "classes": maps.classes,
        "scores": maps.scores.astype(np.float16),
        "size": np.asarray(maps.size, np.int64),
    }
    if maps.background is not None:
        arrays["background"] = maps.background.astype(np.float16)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    atomic_write_bytes(path, buffer.getvalue())


def load_score_maps(path: Path, size: tuple[int, int] | None = None) -> ScoreMaps:
    """Read maps written by `save_score_maps` or by another method.

    Args:
        path: npz with `scores` (n, h, w) and `classes` (n,) 0-based; the names `cam` or `high_res`
            and `keys` of the IRNet code are taken too. Pickled arrays are refused.
        size: (height, width) of the image, used where the file does not say it.

    Raises:
        ArtifactError: unreadable, pickled, oversized, wrong shapes, NaN or negative scores.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            num_bytes = sum(entry.file_size for entry in archive.infolist())
        if num_bytes > MAX_BYTES:
            raise ArtifactError(
                f"score maps '{path}' unpack to {num_bytes} bytes, limit {MAX_BYTES}"
            )
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise ArtifactError(
            f"score maps '{path}' cannot be read ({error}): expected an npz of plain arrays "
            "`scores` (n, h, w) and `classes` (n,)"
        ) from None
    return _check(arrays, path, size)


def _check(
    arrays: dict[str, NDArray[np.generic]], path: Path, size: tuple[int, int] | None
) -> ScoreMaps:
    scores = next((arrays[key] for key in ("scores", "high_res", "cam") if key in arrays), None)
    classes = next((arrays[key] for key in ("classes", "keys") if key in arrays), None)
    if scores is None or classes is None:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise ArtifactError(f"score maps '{path}' hold {found}, expected `scores` and `classes`")
    if scores.ndim != 3 or classes.shape != scores.shape[:1] or 0 in scores.shape[1:]:
        raise ArtifactError(
            f"score maps '{path}': scores {scores.shape} and classes {classes.shape} do not fit, "
            "expected (n, h, w) and (n,)"
        )
    if scores.dtype.kind != "f" or classes.dtype.kind not in "iu":
        raise ArtifactError(
            f"score maps '{path}': scores are {scores.dtype}, classes {classes.dtype}, "
            "expected floats and integers"
        )
    values = scores.astype(np.float32)
    if not np.isfinite(values).all() or (values < 0).any():
        raise ArtifactError(f"score maps '{path}' hold NaN, infinite or negative scores")
    order = np.argsort(classes)
    if "size" in arrays:
        size = (int(arrays["size"][0]), int(arrays["size"][1]))
    background = arrays.get("background")
    return ScoreMaps(
        classes[order].astype(np.int64),
        values[order],
        size or (scores.shape[1], scores.shape[2]),
        None if background is None else background.astype(np.float32),
    )
